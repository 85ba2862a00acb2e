"""Three of the last five rounds, in a row or not."""

from __future__ import annotations

import pytest

from common.protocol.codec import Refusal
from server.rounds.judgement.conduct import is_dispute, is_enough, with_round

BAD, OPPOSED, DISPUTED = Refusal.NOT_FINITE, Refusal.OPPOSED, Refusal.DIRECTION_DISPUTED


def conduct(*outcomes: Refusal | None) -> list[Refusal | None]:
    rounds: list[Refusal | None] = []
    for outcome in outcomes:
        rounds = with_round(rounds, outcome)
    return rounds


@pytest.mark.parametrize(
    ("outcomes", "enough"),
    [
        ((BAD, BAD), False),
        ((BAD, BAD, BAD), True),
        ((OPPOSED, None, OPPOSED, None, OPPOSED), True),
        ((OPPOSED, None, None, OPPOSED, None, OPPOSED), False),
        ((OPPOSED, BAD, None, OPPOSED), True),
        ((DISPUTED, DISPUTED, DISPUTED, OPPOSED, OPPOSED), False),
    ],
)
def test_refused_or_opposed_three_times_in_five_rounds_is_enough(
    outcomes: tuple[Refusal | None, ...], enough: bool
) -> None:
    assert is_enough(conduct(*outcomes)) == enough


def test_disputes_count_against_nobody_and_are_seen() -> None:
    rounds = conduct(DISPUTED, None, Refusal.NORM_DISPUTED, DISPUTED)
    assert is_dispute(rounds) and not is_enough(rounds)
    assert not is_dispute(conduct(DISPUTED, None, None, DISPUTED, None, DISPUTED))
