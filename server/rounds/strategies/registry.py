"""Strategies by their name in the federation file."""

from __future__ import annotations

from collections.abc import Callable

from common.config.federation import FederationConfig
from server.rounds.strategies.fedadam import FedAdam
from server.rounds.strategies.fedavg import FedAvg
from server.rounds.strategies.fedavgm import FedAvgM
from server.rounds.strategies.fedyogi import FedYogi
from server.rounds.strategies.strategy import Strategy

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}
"""Each takes its options, as ``common.config.algorithms`` names them."""


def make_strategy(config: FederationConfig) -> Strategy:
    """Return the strategy of a federation.

    Raises
    ------
    ConfigError
        If the strategy does not support another setting.
    """
    strategy = STRATEGIES[config.strategy.name](**config.strategy.options)
    strategy.check(config)
    return strategy
