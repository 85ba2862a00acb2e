"""FedDyn: dynamic regularisation (Acar et al. 2021, arXiv 2111.04263, algorithm 1).

Each site adds ``alpha / 2 * |w - w_global|^2 - <g, w>`` to its loss, where g is what it remembers of its own gradient,
and then sets ``g = g - alpha * update`` (``client.runner.gradient_memory``). So g + alpha * (w - w_global) cancels the
site's pull away from the common optimum, which is the only model that no site changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.config.federation import FederationConfig
from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates, Window, remembered
from server.rounds.strategies.weighted_mean import mean_update


class FedDyn(OneVector):
    """Adds the mean of the updates, and the mean over all sites of the sums of their updates so far.

    The latter is -h / alpha in the paper: alpha cancels out at the server. An absent site keeps its part in it.
    """

    state_vectors = ("sums",)

    def prepare(self, config: FederationConfig, sites: int) -> None:
        """Remember the number of sites; that of the first round holds for the whole run."""
        del config
        self._sites = sites

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model and the sums; these are of updates as sent, as sites remember them."""
        before, kept = state.vectors["sums"], remembered(updates)
        sites = state.numbers.setdefault("sites", self._sites)

        def step(window: Window) -> Next:
            total = np.zeros(window.size, np.float64)
            for site, (update, *_) in window.updates():
                if site in kept:
                    total += update / np.float64(updates.scales.get(site, 1.0))
            sums = (before[window.where] + total / sites).astype(np.float32)
            return Next(weights[window.where] + mean_update(window, updates.weights) + sums, {"sums": sums})

        return updates.map(step)
