"""Federated averaging with server momentum (Hsu, Qi and Brown 2019, arXiv 1909.06335)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates, Window
from server.rounds.strategies.weighted_mean import mean_update


@dataclass
class FedAvgM(OneVector):
    """Moves the model by a running sum of the mean updates: v = momentum * v + mean, w = w + learning rate * v."""

    server_learning_rate: float
    server_momentum: float
    state_vectors = ("momentum",)

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model and its momentum."""
        before = state.vectors["momentum"]

        def step(window: Window) -> Next:
            momentum = self.server_momentum * before[window.where] + mean_update(window, updates.weights)
            return Next(weights[window.where] + self.server_learning_rate * momentum, {"momentum": momentum})

        return updates.map(step)
