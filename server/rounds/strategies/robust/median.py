"""Coordinate-wise median (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

from collections.abc import Iterator

from common.protocol.codec import Vector
from server.rounds.strategies.robust.trimmed_mean import mean_of_middle
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates


class Median(OneVector):
    """Adds, for every weight, the median of the sites' changes: any minority may send anything."""

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model; no state is kept."""
        del state
        trimmed = (len(updates.weights) - 1) // 2
        return updates.map(lambda window: Next(weights[window.where] + mean_of_middle(window, trimmed)))
