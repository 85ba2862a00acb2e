"""Three of the last five rounds, in a row or not."""

from __future__ import annotations

import pytest

from common.protocol.codec import Refusal
from server.rounds.judgement.conduct import Outcome, blame_of, is_dispute, is_enough, is_odd, with_round
from server.rounds.judgement.directions import Directions
from server.run_store.state import Oddity

LEANING, SCALED = Oddity.LEANING, Oddity.SCALED_DOWN
BAD, OPPOSED, DISPUTED = Refusal.NOT_FINITE, Refusal.OPPOSED, Refusal.DIRECTION_DISPUTED


def conduct(*outcomes: Outcome) -> list[Outcome]:
    rounds: list[Outcome] = []
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
        ((LEANING, SCALED, LEANING, SCALED, LEANING), False),
    ],
)
def test_refused_or_opposed_three_times_in_five_rounds_is_enough(outcomes: tuple[Outcome, ...], enough: bool) -> None:
    assert is_enough(conduct(*outcomes)) == enough


def test_disputes_count_against_nobody_and_are_seen() -> None:
    rounds = conduct(DISPUTED, None, Refusal.NORM_DISPUTED, DISPUTED)
    assert is_dispute(rounds) and not is_enough(rounds)
    assert not is_dispute(conduct(DISPUTED, None, None, DISPUTED, None, DISPUTED))


@pytest.mark.parametrize(
    ("outcomes", "odd"),
    [
        ((OPPOSED, None, LEANING, None, SCALED), True),
        ((SCALED, SCALED, None, None), False),
        ((LEANING, DISPUTED, DISPUTED, LEANING), False),
    ],
)
def test_odd_in_three_of_five_rounds_is_for_a_person_to_see(outcomes: tuple[Outcome, ...], odd: bool) -> None:
    assert is_odd(conduct(*outcomes)) == odd


def test_of_two_sites_no_length_is_odd() -> None:
    assert blame_of("b", Directions(), {"a": 1.0, "b": 0.2}) is None
    assert blame_of("b", Directions(), {"a": 1.0, "b": 0.2, "c": 1.0}) == SCALED
    leaning = Directions(leaning=frozenset("b"))
    assert blame_of("b", leaning, {}) == LEANING
