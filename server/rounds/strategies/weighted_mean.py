"""Weighted mean of updates in memory that does not grow with the number of sites."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Window


class WeightedMean:
    """A running weighted mean of flat vectors.

    Sums are kept in float64, so the order of the vectors changes the float32 result by less than its last digit.

    Parameters
    ----------
    size
        Length of every vector.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._sum = np.zeros(size, np.float64)
        self._weight = 0.0
        self.count = 0

    def add(self, values: Vector, weight: float) -> None:
        """Add a vector with ``weight`` > 0."""
        if not weight > 0:
            raise ValueError(f"weight must be positive, not {weight}")
        self._sum += np.multiply(values, weight, dtype=np.float64)
        self._weight += weight
        self.count += 1

    def mean(self) -> Vector:
        """Return the mean of the vectors; at least one must have been added."""
        if self.count == 0:
            raise ValueError("nothing was added")
        mean = np.empty(self._sum.size, np.float32)
        np.divide(self._sum, self._weight, out=mean, casting="unsafe")
        return mean


def mean_update(window: Window, weights: Mapping[str, float]) -> Vector:
    """Return the mean of a window's updates, weighted by site; sites without a weight are left out."""
    mean = WeightedMean(window.size)
    for site, (update, *_) in window.updates():
        if site in weights:
            mean.add(update, weights[site])
    return mean.mean()
