"""Which round's model is released, so that no single site decides it.

Sites score models on patients that nobody else sees, so a score cannot be checked. The median over sites chooses, and a
round that only one site speaks for is not chosen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

MARGIN, MARGIN_OF_TWO = 0.02, 0.05
"""A site prefers one model to another if its Dice differs by more than the first; less may be chance. Of two sites, one
that prefers another model is enough to ask a person: it must be clear, for the Dice of few patients vary by more."""
Scores = Mapping[int, Mapping[str, float]]
"""Round of the model -> site -> its mean Dice of that model."""


@dataclass(frozen=True)
class Choice:
    """The round to release, and what speaks against it.

    Attributes
    ----------
    round
        The chosen round.
    score
        Median over sites of its Dice.
    by_all
        The round that the median over all sites chooses.
    without
        Site -> the round that the others choose without it.
    left_out
        Site whose scores no other site supports, and which were left out; None if there is none.
    disputed
        Sites of which each alone turns the choice, when no majority tells who is right.
    """

    round: int
    score: float
    by_all: int
    without: Mapping[str, int] = field(default_factory=dict)
    left_out: str | None = None
    disputed: tuple[str, ...] = ()

    @property
    def candidates(self) -> set[int]:
        """All rounds whose model may still be the one to release."""
        return {self.round, self.by_all, *self.without.values()}


def leave_out(scores: Mapping[str, float], sites: Collection[str]) -> dict[str, float]:
    """Return the scores of all other sites."""
    return {site: score for site, score in scores.items() if site not in sites}


def choose(scores: Scores, kept: Collection[int], excluded: Collection[str] = (), noise: float = 0.0) -> Choice | None:
    """Choose the round whose model has the highest median Dice over sites; the earliest of equals.

    If every other site prefers the round that is chosen without a site's scores, that site's scores are left out. With
    two sites, or when that holds for several sites, nobody is left out: the choice is disputed.

    Parameters
    ----------
    scores
        Scores of all rounds.
    kept
        Rounds whose models still exist.
    excluded
        Sites whose scores do not count: those in quarantine.
    noise
        Difference of two medians that noise explains; within it, the latest round is chosen.

    Returns
    -------
    Choice | None
        None if no model that exists has a score.
    """
    counted = {number: leave_out(sites, excluded) or dict(sites) for number, sites in scores.items() if sites}
    chosen = _best(counted, kept, noise)
    if chosen is None:
        return None
    names = sorted({site for sites in counted.values() for site in sites})
    without = {}
    for name in names:
        others = {number: rest for number, sites in counted.items() if (rest := leave_out(sites, [name]))}
        if (best := _best(others, kept, noise)) is not None:
            without[name] = best
    margin = (MARGIN if len(names) > 2 else MARGIN_OF_TWO) + noise * math.sqrt(len(names))
    alone = [name for name, other in without.items() if _others_prefer(counted, name, other, chosen, margin)]
    if len(alone) == 1 and len(names) >= 3:
        supported = without[alone[0]]
        rest = leave_out(counted[supported], alone)
        return Choice(supported, statistics.median(rest.values()), chosen, without, alone[0])
    return Choice(chosen, statistics.median(counted[chosen].values()), chosen, without, None, tuple(alone))


def _best(scores: Scores, kept: Collection[int], noise: float) -> int | None:
    medians = {number: statistics.median(sites.values()) for number, sites in sorted(scores.items())}
    there = {number: median for number, median in medians.items() if number in kept}
    if not there:
        return None
    close = [number for number, median in there.items() if median > max(medians.values()) - noise]
    return close[-1] if close else max(there, key=there.__getitem__)


def _others_prefer(scores: Scores, name: str, other: int, chosen: int, margin: float) -> bool:
    """Return whether every site but one prefers another round to the chosen one."""
    both = [site for site in scores[other] if site in scores[chosen] and site != name]
    return bool(both) and all(scores[other][site] - scores[chosen][site] > margin for site in both)
