"""Coordinate-wise median (Yin et al. 2018, arXiv 1803.01498)."""

from __future__ import annotations

from collections.abc import Iterator

from common.config.federation import FederationConfig
from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Next, StrategyState, Updates
from server.rounds.strategies.trimmed_mean import mean_of_middle


class Median:
    """Adds, for every weight, the median of the sites' changes: any minority may send anything."""

    update_vectors = 1
    state_vectors: tuple[str, ...] = ()

    def check(self, config: FederationConfig) -> None:
        """Accept every federation."""
        del config

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model; no state is kept."""
        del state
        trimmed = (len(updates.weights) - 1) // 2
        return updates.map(lambda window: Next(weights[window.where] + mean_of_middle(window, trimmed)))
