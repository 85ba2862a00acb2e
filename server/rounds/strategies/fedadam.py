"""FedAdam: Adam at the server (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates, Window
from server.rounds.strategies.weighted_mean import mean_update


@dataclass
class FedAdam(OneVector):
    """Moves each weight by the first moment of its mean updates, divided by the root of their second moment.

    With the mean update d: m = beta_1 * m + (1 - beta_1) * d, v = ``second_moment``(v, d squared), and
    w = w + learning rate * m / (sqrt(v) + tau). As in the paper, v begins at tau squared, and nothing corrects the
    bias of the first rounds.
    """

    server_learning_rate: float
    beta_1: float
    beta_2: float
    tau: float
    state_vectors = ("first_moment", "second_moment")

    def second_moment(self, before: Vector, squared: Vector) -> Vector:
        """Return the next second moment."""
        return self.beta_2 * before + (1 - self.beta_2) * squared

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model and both moments."""
        first, second = (state.vectors[name] for name in self.state_vectors)
        start = 0.0 if state.numbers.get("begun") else self.tau**2
        state.numbers["begun"] = 1

        def step(window: Window) -> Next:
            change = mean_update(window, updates.weights)
            m = self.beta_1 * first[window.where] + (1 - self.beta_1) * change
            v = self.second_moment(second[window.where] + start, change * change)
            root: Vector = np.sqrt(v)
            moved = weights[window.where] + self.server_learning_rate * m / (root + self.tau)
            return Next(moved, {"first_moment": m, "second_moment": v})

        return updates.map(step)
