"""The ``strategy`` section of a federation file: how updates become the next model, and how many a round needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from common.config.algorithms import COUNT_SITES_ALIKE, AlgorithmConfig
from common.formatting import counted
from common.plan.base import Fraction, PositiveInt

_WEIGHT_RULE = re.compile(r"patients|uniform|capped:[1-9][0-9]{0,8}(\.[0-9]{1,9})?")
SITES_OVER_A_NETWORK = 3
"""With fewer, a site can work out what another one sent, and nobody can tell which of two sites is wrong."""


def _check_weight_rule(rule: str) -> str:
    if not _WEIGHT_RULE.fullmatch(rule):
        raise ValueError("must be patients, uniform, a cap such as capped:2, or a number for every site")
    return rule


WeightRule = Annotated[str, AfterValidator(_check_weight_rule)]


class StrategyConfig(AlgorithmConfig):
    """How updates are aggregated, besides the algorithm and its options.

    Attributes
    ----------
    weights
        How much each site's update counts: ``patients`` by its declared number of training patients, ``capped:2`` the
        same, but at most twice the median of the other sites' numbers, ``uniform`` all alike; or a number for every
        site, which overrides what sites declare. Algorithms that count all sites alike have ``uniform`` alone.
    min_sites, min_fraction
        Fewest accepted updates, as a number and as a share of the participating sites; a round with fewer fails and
        leaves the model unchanged. Over a network, ``min_sites`` is ``SITES_OVER_A_NETWORK`` unless the file says
        otherwise.
    max_failed_rounds
        Number of consecutive failed rounds that ends the run.
    average_rounds
        The model after the last round is the mean of the models after this many last rounds. None averages nothing, and
        is not written out: digests of federations without an average stay as they were.
    """

    weights: WeightRule | Annotated[dict[str, PositiveInt], Field(min_length=1)] = "capped:2"
    min_sites: PositiveInt = 1
    min_fraction: Fraction = 0.0
    max_failed_rounds: PositiveInt = 3
    average_rounds: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_algorithm(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("name") in COUNT_SITES_ALIKE:
            return {"weights": "uniform", **content}
        return content

    @model_validator(mode="after")
    def _no_weights_that_do_not_count(self) -> Self:
        if self.name in COUNT_SITES_ALIKE and self.weights != "uniform":
            raise ValueError(f"{self.name} counts all sites alike; remove weights, or write uniform")
        return self


def with_least_sites(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the default of ``min_sites`` for a federation over a network; leave what the file says."""
    strategy = content.get("strategy")
    if content.get("network") is None or not isinstance(strategy, dict | None) or "min_sites" in (strategy or {}):
        return dict(content)
    return {**content, "strategy": {**(strategy or {}), "min_sites": SITES_OVER_A_NETWORK}}


def check_average(strategy: StrategyConfig, rounds: int) -> None:
    """Refuse an average over more rounds than there are.

    Raises
    ------
    ValueError
        Names the key and what to write.
    """
    if (strategy.average_rounds or 1) > rounds:
        raise ValueError(
            f"strategy.average_rounds is {strategy.average_rounds}, and there {'is' if rounds == 1 else 'are'} only "
            f"{counted(rounds, 'round')}; lower it, or raise rounds"
        )


def check_least_sites(strategy: StrategyConfig, sites: int) -> None:
    """Refuse a number of updates that so many sites can never send.

    Raises
    ------
    ValueError
        Names the key and what to write.
    """
    if strategy.min_sites > sites:
        raise ValueError(
            f"strategy.min_sites is {strategy.min_sites} and network.sites names {sites}; add sites, or write fewer in "
            "the file and know what it means: with two sites, each can work out the other's update from the next model"
        )
    check_enough_sites(strategy, sites)


def check_enough_sites(strategy: StrategyConfig, sites: int) -> None:
    """Refuse an algorithm whose promise needs more sites.

    Raises
    ------
    ValueError
        Names the smallest number of sites.
    """
    if strategy.least_updates > sites:
        raise ValueError(
            f"strategy.name {strategy.name} needs at least {strategy.least_updates} sites to withstand "
            f"{counted(strategy.malicious, 'malicious site')}, and there are {sites}; add sites, lower "
            "strategy.malicious_sites if it is above 1, or choose another algorithm"
        )
