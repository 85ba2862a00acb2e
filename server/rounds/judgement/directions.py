"""Which sites push the model against the others, from the directions of a round's updates.

While a model learns, honest updates agree, and one that pushes against them stands out. Once it hardly moves, each site
pulls towards its own patients, and honest sites oppose each other too: short updates at the end of a run say nothing.
Updates are read window by window, so memory grows with neither the model nor the number of sites.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from common.protocol.codec import Vector
from common.weights.encoding import UNTHREADED
from server.rounds.strategies.strategy import Updates, Window

SUSPECT, OPPOSED_TO_AGREEMENT, OPPOSED = -0.1, -0.25, -0.4
"""A site below the first cosine is no witness for the others, and leans against them if these agree. One below the
second pushes against them if they agree, and one below the third in any case: as honest updates come to differ, so do a
liar's from their opposite.
"""
STILL_MOVES = 1 / 3
"""Directions count while the median length of the updates is at least this share of the longest round's."""
STANDARD_DEVIATIONS, LOWEST_BOUND = 3.0, -0.9
"""Directions of few weights agree or disagree by chance, the more so under noise."""


@dataclass(frozen=True)
class Directions:
    """How a round's updates point.

    Attributes
    ----------
    cosines
        Site -> cosine between its update and the mean direction of the other sites that are not set aside.
    opposed
        Sites that push against the rest, which is a majority and agrees.
    leaning
        Sites that push against the rest less clearly.
    disputed
        All sites, if no majority agrees; any of them may be right.
    """

    cosines: Mapping[str, float] = field(default_factory=dict)
    opposed: frozenset[str] = frozenset()
    leaning: frozenset[str] = frozenset()
    disputed: frozenset[str] = frozenset()


def compare_directions(updates: Updates, norms: Mapping[str, float], longest: float = 0.0) -> Directions:
    """Compare the updates of a round by direction alone; their lengths play no part.

    The site that opposes the others most is set aside, and all are compared with the rest, until nobody in it opposes
    the others or those set aside would no longer be a minority.

    Parameters
    ----------
    updates
        The updates; of each, only the first vector is compared.
    norms
        Site -> L2 norm of its update, positive.
    longest
        Highest median length of any earlier round.
    """
    if len(norms) < 2:
        return Directions()
    if statistics.median(norms.values()) < STILL_MOVES * longest:
        return Directions(_cosines(updates, norms, norms)[0])
    witnesses, aside = set(norms), set[str]()
    while True:
        cosines, chance = _cosines(updates, norms, witnesses)
        worst = min(sorted(witnesses), key=cosines.__getitem__)
        if cosines[worst] >= SUSPECT or 2 * (len(aside) + 1) >= len(norms):
            break
        witnesses.remove(worst)
        aside.add(worst)
    bound = max(LOWEST_BOUND, min(OPPOSED, -chance))
    if any(cosines[site] < bound for site in witnesses):
        return Directions(cosines, disputed=frozenset(norms))
    clear = max(-SUSPECT, chance)
    agree = min(cosines[site] for site in witnesses) > clear
    limit = max(bound, min(OPPOSED_TO_AGREEMENT, -chance)) if agree else bound
    opposed = frozenset(site for site in aside if cosines[site] < limit)
    leaning = frozenset(site for site in aside - opposed if agree and cosines[site] < -clear)
    return Directions(cosines, opposed, leaning)


def _cosines(
    updates: Updates, norms: Mapping[str, float], witnesses: Collection[str]
) -> tuple[dict[str, float], float]:
    """Return each site's cosine to the mean direction of the witnesses other than itself, and what chance allows."""
    dots, squared, weights = dict.fromkeys(norms, 0.0), 0.0, 0
    for part_dots, part_squared, part_weights in updates.each(_products(norms, witnesses)):
        for site, dot in part_dots.items():
            dots[site] += dot
        squared += part_squared
        weights += part_weights
    cosines = {}
    for site, dot in dots.items():
        own = 1.0 if site in witnesses else 0.0
        # The sum without the site's own direction, whose length is 1.
        rest = math.sqrt(max(squared - 2 * own * dot + own, 0.0))
        cosines[site] = (dot - own) / rest if rest > 1e-6 else 0.0
    return cosines, STANDARD_DEVIATIONS / math.sqrt(max(weights, 1))


def _products(
    norms: Mapping[str, float], witnesses: Collection[str]
) -> Callable[[Window], tuple[dict[str, float], float, int]]:
    def products(window: Window) -> tuple[dict[str, float], float, int]:
        total = np.zeros(window.size, np.float64)
        for site, (update, *_) in window.updates():
            if site in witnesses:
                total += np.divide(update, norms[site], dtype=np.float64)
        dots = {site: _dot(update, total) / norms[site] for site, (update, *_) in window.updates()}
        return dots, _dot(total, total), int(np.count_nonzero(total))

    return products


def _dot(left: Vector | np.ndarray, right: np.ndarray) -> float:
    parts = range(0, right.size, UNTHREADED)
    return sum(float(left[start : start + UNTHREADED] @ right[start : start + UNTHREADED]) for start in parts)
