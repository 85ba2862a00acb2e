"""What a run's record says of all its rounds: worked out once for each record, however often a page is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from server.run_store.record import RunRecord, SiteRound
from server.web.curves import KINDS


@dataclass
class SiteHistory:
    """One site's rounds.

    Attributes
    ----------
    last, last_round
        What it reported, or why it did not count, in the last round that it was part of.
    epsilon
        The largest that it has reported; None if it has not.
    refused
        Number of rounds in which it was refused.
    """

    last: SiteRound | None = None
    last_round: int | None = None
    epsilon: float | None = None
    refused: int = 0


class History:
    """All rounds of a run.

    Parameters
    ----------
    record
        The run's record, which does not change any more.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self._drawings: dict[tuple[str, str], dict[str, Any] | None] = {}

    def drawing(self, kind: str, mean: str) -> dict[str, Any] | None:
        """Return one of ``KINDS`` of curves as a drawing; ``mean`` names the curve over all sites."""
        key = kind, mean
        if key not in self._drawings:
            self._drawings[key] = KINDS[kind](self.record, mean).drawing()
        return self._drawings[key]

    @cached_property
    def sites(self) -> Mapping[str, SiteHistory]:
        """Every site that was part of a round, by name."""
        found: dict[str, SiteHistory] = {}
        for line in self.record.rounds:
            for name, part in line.sites.items():
                site = found.setdefault(name, SiteHistory())
                site.last, site.last_round = part, line.number
                site.refused += part.status == "refused"
                if part.epsilon is not None:
                    site.epsilon = max(part.epsilon, site.epsilon or part.epsilon)
        return found

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon of all sites; None if none has reported one."""
        return max((site.epsilon for site in self.sites.values() if site.epsilon is not None), default=None)
