"""Strategies by their name in the federation file."""

from __future__ import annotations

from collections.abc import Callable

from common.config.federation import FederationConfig
from server.rounds.strategies.fedavg import FedAvg
from server.rounds.strategies.strategy import Strategy

STRATEGIES: dict[str, Callable[[], Strategy]] = {"fedavg": FedAvg}


def make_strategy(config: FederationConfig) -> Strategy:
    """Return the strategy of a federation.

    Raises
    ------
    ConfigError
        If the strategy does not support another setting.
    """
    strategy = STRATEGIES[config.strategy.name]()
    strategy.check(config)
    return strategy
