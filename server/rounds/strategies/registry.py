"""Strategies by their name in the federation file."""

from __future__ import annotations

from collections.abc import Callable

from common.config.federation import FederationConfig
from common.config.strategy import check_enough_sites
from common.errors import ConfigError
from server.rounds.strategies.fedadam import FedAdam
from server.rounds.strategies.fedavg import FedAvg
from server.rounds.strategies.fedavgm import FedAvgM
from server.rounds.strategies.feddyn import FedDyn
from server.rounds.strategies.fednova import FedNova
from server.rounds.strategies.fedyogi import FedYogi
from server.rounds.strategies.robust.clipped_mean import ClippedMean
from server.rounds.strategies.robust.geometric_median import GeometricMedian
from server.rounds.strategies.robust.median import Median
from server.rounds.strategies.robust.multi_krum import MultiKrum
from server.rounds.strategies.robust.trimmed_mean import TrimmedMean
from server.rounds.strategies.scaffold import Scaffold
from server.rounds.strategies.strategy import Strategy


def _fedprox(proximal_mu: float) -> FedAvg:
    """Return the server's part of FedProx, which is FedAvg's: the sites do the rest (``client.training.proximal``)."""
    del proximal_mu
    return FedAvg()


def _feddyn(feddyn_alpha: float) -> FedDyn:
    """Return the server's part of FedDyn, in which alpha cancels out."""
    del feddyn_alpha
    return FedDyn()


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": _fedprox,
    "fednova": FedNova,
    "feddyn": _feddyn,
    "scaffold": Scaffold,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "multi_krum": MultiKrum,
    "geometric_median": GeometricMedian,
    "clipped_mean": ClippedMean,
}
"""Each takes its options, as ``common.config.algorithms`` names them."""


def make_strategy(config: FederationConfig, sites: int) -> Strategy:
    """Return the strategy of a federation of so many sites.

    Raises
    ------
    ConfigError
        If the strategy does not support another setting, or needs more sites.
    """
    try:
        check_enough_sites(config.strategy, sites)
        # Also for a configuration that was changed after it was read, such as an arm of a comparison.
        config.check_combination()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    strategy = STRATEGIES[config.strategy.name](**config.strategy.options)
    strategy.prepare(config, sites)
    return strategy
