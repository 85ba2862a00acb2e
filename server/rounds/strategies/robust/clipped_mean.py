"""Mean of updates of bounded length (Sun et al. 2019, arXiv 1911.07963); the bound follows the round's median."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.protocol.codec import Vector
from server.rounds.strategies.robust.distances import lengths
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates, Window
from server.rounds.strategies.weighted_mean import mean_update


@dataclass
class ClippedMean(OneVector):
    """Scales updates longer than ``clip_factor`` times the median length down to it, and adds their weighted mean."""

    clip_factor: float

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model; no state is kept."""
        del state
        norms = lengths(updates)
        # Of two sites, the shorter update counts.
        bound = self.clip_factor * statistics.median_low(norms.values())
        clipped = {site: updates.weights[site] * min(1.0, bound / norm) for site, norm in norms.items()}
        share = sum(clipped.values()) / sum(updates.weights[site] for site in norms)

        def add_mean(window: Window) -> Next:
            return Next(weights[window.where] + np.float32(share) * mean_update(window, clipped))

        return updates.map(add_mean)
