"""What a site did in its last rounds: it is judged by several of them, in a row or not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from common.protocol.codec import Refusal
from server.rounds.judgement.directions import Directions

ROUNDS, BAD_ROUNDS = 5, 3
DISPUTES: Collection[Refusal] = (Refusal.NORM_DISPUTED, Refusal.DIRECTION_DISPUTED)
"""Reasons that name several sites, one of which may be honest: they count against nobody."""


def blame_of(site: str, directions: Directions) -> Refusal | None:
    """Return what a site is blamed for by the direction of its update, None for nothing."""
    if site in directions.opposed:
        return Refusal.OPPOSED
    return Refusal.DIRECTION_DISPUTED if site in directions.disputed else None


def with_round(conduct: Sequence[Refusal | None], outcome: Refusal | None) -> list[Refusal | None]:
    """Return a site's last ``ROUNDS`` outcomes after one more; None for a round without complaint."""
    return [*conduct, outcome][-ROUNDS:]


def is_enough(conduct: Sequence[Refusal | None]) -> bool:
    """Return whether a site was refused, or opposed the others, in ``BAD_ROUNDS`` of its last ``ROUNDS``."""
    return sum(outcome is not None and outcome not in DISPUTES for outcome in conduct) >= BAD_ROUNDS


def is_dispute(conduct: Sequence[Refusal | None]) -> bool:
    """Return whether a site was in ``BAD_ROUNDS`` disputes in its last ``ROUNDS``."""
    return sum(outcome in DISPUTES for outcome in conduct) >= BAD_ROUNDS
