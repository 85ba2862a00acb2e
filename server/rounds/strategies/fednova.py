"""FedNova: normalised averaging (Wang et al. 2020, arXiv 2007.07481), for sites that make different numbers of steps.

FedAvg counts a site's gradients as often as it makes steps, and ends at another optimum than that of the federation's
loss. FedNova divides each update by the length of its steps before it takes the mean (``round_length``: with the
learning rates, the sum of the paper's vector a), and multiplies the mean by the mean length. Plain SGD and momentum
have such a length; AdamW, which rescales every gradient, has none.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.config.federation import FederationConfig
from common.config.schedule import round_length
from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Next, OneVector, StrategyState, Updates
from server.rounds.strategies.weighted_mean import mean_update


class FedNova(OneVector):
    """Adds sum p_i A_i * sum p_i u_i / A_i, of updates u_i with lengths A_i and weights p_i that add up to 1."""

    def prepare(self, config: FederationConfig, sites: int) -> None:
        """Remember the schedule."""
        del sites
        self._config = config

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model; no state is kept."""
        del state
        lengths = {
            site: round_length(self._config, result.round, result.steps) for site, result in updates.results.items()
        }
        normalised = {site: updates.weights[site] / length for site, length in lengths.items()}
        total = sum(updates.weights[site] for site in lengths)
        mean_length = sum(updates.weights[site] * length for site, length in lengths.items()) / total
        share = np.float32(mean_length * sum(normalised.values()) / total)
        return updates.map(lambda window: Next(weights[window.where] + share * mean_update(window, normalised)))
