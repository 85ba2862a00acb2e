"""Distances between updates, and lengths, from one pass over the windows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.weights.encoding import squared_norm
from server.rounds.strategies.strategy import Updates, Window

UNTHREADED_PRODUCTS = 2**18
"""BLAS uses several threads for more products than this, and they wait for each other on loaded machines."""


def lengths(updates: Updates) -> dict[str, float]:
    """Return the L2 norm of each site's update."""

    def squares(window: Window) -> dict[str, float]:
        return {site: squared_norm(update) for site, (update, *_) in window.updates()}

    totals = dict.fromkeys(updates.results, 0.0)
    for part in updates.each(squares):
        for site, value in part.items():
            totals[site] += value
    return {site: math.sqrt(total) for site, total in totals.items()}


def squared_distances(updates: Updates) -> NDArray[np.float64]:
    """Return the squared distance of each update (row) to each other, in the order of ``updates.results``."""
    count = len(updates.results)
    total = np.zeros((count, count))
    for part in updates.each(_squared_distances):
        total += part
    return total


def _squared_distances(window: Window) -> NDArray[np.float64]:
    updates = [update for _, (update, *_) in window.updates()]
    products = np.zeros((len(updates), len(updates)))
    columns = max(1, UNTHREADED_PRODUCTS // len(updates) ** 2)
    for start in range(0, window.size, columns):
        rows = np.array([update[start : start + columns] for update in updates], np.float64)
        # Distances stay the same, and their digits are not lost in the length that all updates share.
        rows -= rows.mean(axis=0)
        products += rows @ rows.T
    squares = np.diag(products)
    distances: NDArray[np.float64] = np.maximum(squares[:, None] + squares - 2 * products, 0)
    return distances
