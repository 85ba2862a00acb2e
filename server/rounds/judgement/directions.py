"""Which sites push the model against the others, from the directions of a round's updates.

While a model learns, honest updates agree, and one that pushes against them stands out. Near the end they hardly agree:
each site then pulls a little towards its own patients, so a cosine slightly below zero says nothing. Updates are read
window by window, so memory grows with neither the model nor the number of sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from common.protocol.codec import Vector
from common.weights.encoding import UNTHREADED
from server.rounds.strategies.strategy import Updates, Window

OPPOSED = -0.25
"""Honest sites with other scanners or other patients stay above this cosine (``tests/benchmarks/honest_sites.py``)."""
STANDARD_DEVIATIONS, LOWEST_BOUND = 3.0, -0.9
"""Directions of few weights agree or disagree by chance, the more so under noise."""


@dataclass(frozen=True)
class Directions:
    """How a round's updates point.

    Attributes
    ----------
    cosines
        Site -> cosine between its update and the mean direction of the other sites, without those in ``opposed``.
    opposed
        Sites that push against the rest, which is a majority and agrees.
    disputed
        Sites that push against each other when no majority agrees; any of them may be right.
    """

    cosines: Mapping[str, float] = field(default_factory=dict)
    opposed: frozenset[str] = frozenset()
    disputed: frozenset[str] = frozenset()


def compare_directions(updates: Updates, norms: Mapping[str, float]) -> Directions:
    """Compare the updates of a round by direction alone; their lengths play no part.

    The site that opposes the others most is set aside, and the rest is compared again without it, until nobody opposes
    the rest or those set aside would no longer be a minority.

    Parameters
    ----------
    updates
        The updates; of each, only the first vector is compared.
    norms
        Site -> L2 norm of its update, positive.
    """
    if len(norms) < 2:
        return Directions()
    witnesses, opposed = set(norms), set[str]()
    while True:
        cosines, bound = _cosines(updates, norms, witnesses)
        against = [site for site in sorted(witnesses) if cosines[site] < bound]
        if not against:
            return Directions(cosines, frozenset(opposed))
        if 2 * (len(opposed) + 1) >= len(norms):
            return Directions(cosines, disputed=frozenset(opposed.union(against)))
        worst = min(against, key=cosines.__getitem__)
        witnesses.remove(worst)
        opposed.add(worst)


def _cosines(
    updates: Updates, norms: Mapping[str, float], witnesses: Collection[str]
) -> tuple[dict[str, float], float]:
    """Return each site's cosine to the mean direction of the witnesses other than itself, and the bound for them."""
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
    return cosines, max(LOWEST_BOUND, min(OPPOSED, -STANDARD_DEVIATIONS / math.sqrt(max(weights, 1))))


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
