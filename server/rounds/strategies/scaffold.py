"""SCAFFOLD: stochastic controlled averaging (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1 with option II).

Each site adds c - c_i to its gradients, where the control variates c_i and c are the mean gradients of the site and of
the federation, and sets ``c_i = c_i - c - update / length`` (``client.runner.gradient_memory``). The length is that of
its steps together: learning rate times number of steps, or ``step_length`` with a schedule or momentum. The change of
c_i follows from the update, the length and c, which the server knows: sites send nothing but their update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.config.federation import FederationConfig
from common.config.schedule import round_length
from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates, Window, remembered
from server.rounds.strategies.weighted_mean import mean_update


@dataclass
class Scaffold(OneVector):
    """Adds the mean of the updates, and keeps c the mean of all sites' control variates, also of absent sites."""

    server_learning_rate: float
    state_vectors = ("control",)

    def prepare(self, config: FederationConfig, sites: int) -> None:
        """Remember the federation's steps and its number of sites; that of the first round holds for the whole run."""
        self._config, self._sites = config, sites

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model and c; the latter from updates as sent, as sites remember them."""
        control, kept = state.vectors["control"], remembered(updates)
        sites = state.numbers.setdefault("sites", self._sites)
        lengths = {
            site: updates.scales.get(site, 1.0) * round_length(self._config, result.round, result.steps)
            for site, result in updates.results.items()
            if site in kept
        }

        def step(window: Window) -> Next:
            before = control[window.where].astype(np.float64)
            changes = np.zeros(window.size, np.float64)
            for site, (update, *_) in window.updates():
                if site in kept:
                    changes -= before + update / np.float64(lengths[site])
            after = (before + changes / sites).astype(np.float32)
            change = np.float32(self.server_learning_rate) * mean_update(window, updates.weights)
            return Next(weights[window.where] + change, {"control": after})

        return updates.map(step)
