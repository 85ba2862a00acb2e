"""What a site did in its last rounds: it is judged by several of them, in a row or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from common.protocol.codec import Refusal
from server.rounds.judgement.directions import Directions
from server.run_store.state import Oddity

ROUNDS, BAD_ROUNDS = 5, 3
DISPUTES: Collection[Refusal | Oddity] = (Refusal.NORM_DISPUTED, Refusal.DIRECTION_DISPUTED)
"""Reasons that name several sites, one of which may be honest: they count against nobody."""
Outcome = Refusal | Oddity | None


def blame_of(
    site: str, directions: Directions, scales: Mapping[str, float], copied: Collection[str] = frozenset()
) -> Outcome:
    """Return what a site is blamed for, or what is odd, by the direction and length of its update; None for nothing.

    ``copied`` are the sites whose updates are nearly copies.

    Of two sites, nobody can tell which one's length is odd.
    """
    if site in directions.opposed:
        return Refusal.OPPOSED
    if site in directions.disputed:
        return Refusal.DIRECTION_DISPUTED
    if site in copied:
        return Oddity.COPIED
    if site in directions.leaning:
        return Oddity.LEANING
    return Oddity.SCALED_DOWN if len(scales) > 2 and scales.get(site, 1.0) < 1 else None


def with_round(conduct: Sequence[Outcome], outcome: Outcome) -> list[Outcome]:
    """Return a site's last ``ROUNDS`` outcomes after one more; None for a round without complaint."""
    return [*conduct, outcome][-ROUNDS:]


def is_enough(conduct: Sequence[Outcome]) -> bool:
    """Return whether a site was refused, or opposed the others, in ``BAD_ROUNDS`` of its last ``ROUNDS``."""
    return sum(isinstance(outcome, Refusal) and outcome not in DISPUTES for outcome in conduct) >= BAD_ROUNDS


def is_odd(conduct: Sequence[Outcome]) -> bool:
    """Return whether a site was refused, opposed the others or was odd in ``BAD_ROUNDS`` of its last ``ROUNDS``."""
    return sum(outcome is not None and outcome not in DISPUTES for outcome in conduct) >= BAD_ROUNDS


def is_copying(conduct: Sequence[Outcome]) -> bool:
    """Return whether a site's updates were nearly copies in ``BAD_ROUNDS`` of its last ``ROUNDS``."""
    return conduct.count(Oddity.COPIED) >= BAD_ROUNDS


def is_dispute(conduct: Sequence[Outcome]) -> bool:
    """Return whether a site was in ``BAD_ROUNDS`` disputes in its last ``ROUNDS``."""
    return sum(outcome in DISPUTES for outcome in conduct if outcome is not None) >= BAD_ROUNDS
