"""Geometric median, or RFA (Pillutla, Kakade and Harchaoui 2022, arXiv 1912.13445)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from common.protocol.codec import Vector
from server.rounds.strategies.robust.distances import squared_distances
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates
from server.rounds.strategies.weighted_mean import mean_update

ITERATIONS = 100
"""They cost nothing: all of them work on the distances between updates."""
SMOOTHING = 1e-6
"""Shortest distance that counts, as a share of the largest one between two updates."""


class GeometricMedian(OneVector):
    """Adds the vector whose sum of distances to all updates is smallest: any minority may send anything."""

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model; no state is kept."""
        del state
        sites = list(updates.results)
        shares = median_shares(squared_distances(updates), np.array([updates.weights[site] for site in sites]))
        mean_weights = dict(zip(sites, shares.tolist(), strict=True))
        return updates.map(lambda window: Next(weights[window.where] + mean_update(window, mean_weights)))


def median_shares(distances: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of every update in the geometric median, by the smoothed Weiszfeld algorithm.

    The median is a mean of the updates u with some shares c, and the distance of such a mean to an update follows from
    the distances D between updates: |sum c_j u_j - u_i|^2 = sum c_j D_ij - 1/2 sum c_j c_k D_jk.
    """
    smallest = SMOOTHING * np.sqrt(distances.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    if smallest == 0:
        return shares
    for _ in range(ITERATIONS):
        to_median = distances @ shares - shares @ distances @ shares / 2
        shares = weights / np.sqrt(np.maximum(to_median, smallest**2))
        shares = shares / shares.sum()
    return shares
