"""Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.protocol.codec import Vector
from server.rounds.strategies.robust.distances import squared_distances
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates
from server.rounds.strategies.weighted_mean import mean_update


@dataclass
class MultiKrum(OneVector):
    """Adds the mean of the n - f - 2 updates that lie closest to others, of n with up to f malicious ones."""

    malicious_sites: int

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model; no state is kept."""
        del state
        sites = list(updates.results)
        chosen = {sites[index]: 1.0 for index in closest(squared_distances(updates), self.malicious_sites)}
        return updates.map(lambda window: Next(weights[window.where] + mean_update(window, chosen)))


def closest(distances: NDArray[np.float64], malicious: int) -> list[int]:
    """Return the updates to keep: a score is the sum of the squared distances to the n - f - 2 nearest others."""
    count = len(distances)
    # Fewer updates than sites arrive only if some were refused, and those were malicious.
    kept = count - min(malicious, (count - 3) // 2) - 2
    # The distance of an update to itself, 0, comes first.
    scores = np.sort(distances, axis=1)[:, 1 : kept + 1].sum(axis=1)
    return sorted(np.argsort(scores, kind="stable")[:kept].tolist())
