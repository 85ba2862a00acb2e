"""Federated averaging (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates, Window
from server.rounds.strategies.weighted_mean import mean_update


class FedAvg(OneVector):
    """Adds the mean of the updates, weighted as ``strategy.weights`` says."""

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the weights plus the weighted mean of the updates; no state is kept."""
        del state

        def add_mean(window: Window) -> Next:
            change = mean_update(window, updates.weights)
            return Next(np.add(weights[window.where], change, out=change))

        return updates.map(add_mean)
