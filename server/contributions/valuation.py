"""What each site of a finished simulation added to its model, without training again.

In each kept round, models are built again from the updates of some of the sites (as FedAvg makes them) and scored on
the sites' validation patients. A set of sites is worth the mean Dice that its model has; a site's value in the round is
its Shapley value in this game, and its value in the run is the sum over rounds. Sites that did not take part in a round
get nothing for it. This is the federated Shapley value (Wang et al. 2020, "A principled approach to data valuation for
federated learning", arXiv 2009.06192), and close to the multi-round reconstruction of Song et al. 2019 ("Profit
allocation for federated learning"). Leaving one site out is computed from the same models.

If all rounds are kept, the values add up to what the run gained in all: a round's model with all sites is the
next one's without any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from common.config.federation import load_federation
from common.errors import ConfigError
from common.formatting import counted
from common.protocol.codec import Vector
from common.seeds import seed_of
from server.contributions.shapley import exact_shares, losses_without, sampled_shares
from server.rounds.kept_updates import KeptRound, kept_rounds
from server.run_store.folder import FEDERATION_FILE

MEANS = ("fedavg", "fedprox")
"""Algorithms whose next model is the mean of the updates; others cannot be built again from these alone."""
MOST_EXACT = 4
"""With so many sites, all sets of them are scored in each round (16); with more, as many as random orders need."""

Score = Callable[[Vector], float]
"""Mean Dice of a model."""


@dataclass(frozen=True)
class Sampling:
    """How much is computed.

    Attributes
    ----------
    rounds
        Most rounds, spread evenly over the kept ones; None for all.
    orders
        Random orders of the sites in each round, if there are more than ``MOST_EXACT``.
    tolerance
        An order ends once its sites reach the Dice of all to within this.
    patients
        Most validation scans of each site that models are scored on; None for all.
    """

    rounds: int | None = None
    orders: int = 20
    tolerance: float = 0.002
    patients: int | None = None


@dataclass(frozen=True)
class SiteContribution:
    """What one site added, in mean Dice.

    Attributes
    ----------
    shapley
        Sum of its Shapley values over rounds.
    error
        Monte-Carlo standard error of that; 0 if it is exact.
    without
        Sum over rounds of how much Dice the next model would have lost without it (leave one out).
    """

    shapley: float
    error: float
    without: float


@dataclass(frozen=True)
class Contributions:
    """What all sites added.

    Attributes
    ----------
    sites
        Site -> what it added.
    gain
        Sum of the gains in mean Dice of all rounds that were looked at; the Shapley values add up to it.
    rounds
        These rounds.
    orders
        Random orders per round; 0 if all values are exact.
    patients
        Most validation scans per site that models were scored on; None for all.
    scored
        How many models were scored.
    """

    sites: dict[str, SiteContribution]
    gain: float
    rounds: tuple[int, ...]
    orders: int
    patients: int | None
    scored: int

    def as_dict(self) -> dict[str, Any]:
        """Return the contributions for JSON."""
        return asdict(self)

    def as_lines(self) -> list[str]:
        """Return the contributions as a table for people, largest first."""
        width = max(len("site"), *map(len, self.sites))
        lines = [f"{'site':<{width}}  {'Shapley value':>18}  {'lost without it':>15}"]
        for site, found in sorted(self.sites.items(), key=lambda item: (-item[1].shapley, item[0])):
            error = f" ± {found.error:.4f}" if self.orders else ""
            lines.append(f"{site:<{width}}  {f'{found.shapley:+.4f}{error}':>18}  {found.without:>+15.4f}")
        how = f"{counted(self.orders, 'random order')} per round" if self.orders else "exact"
        on = "all validation scans" if self.patients is None else f"at most {self.patients} validation scans per site"
        return [
            *lines,
            f"mean Dice gained in {counted(len(self.rounds), 'round')}: {self.gain:+.4f}, to which the Shapley values "
            f"({how}) add up; {counted(self.scored, 'model')} scored on {on}",
        ]


def contributions(
    run: Path,
    score: Score,
    sampling: Sampling,
    progress: Callable[[int, int], None],
) -> Contributions:
    """Return what each site of a simulation contributed.

    Parameters
    ----------
    run
        A run folder with kept updates (``simulation.keep_updates_gb``).
    score
        Scores a model, the higher the better.
    sampling
        How much is computed.
    progress
        Called with rounds done and rounds in all.

    Raises
    ------
    ConfigError
        The run kept no updates, or its algorithm does not combine them by a mean.
    DamagedFileError
        Kept updates are damaged.
    """
    strategy = load_federation(run / FEDERATION_FILE).strategy.name
    if strategy not in MEANS:
        raise ConfigError(
            f"strategy.name {strategy}: its models cannot be built again from some of the updates; contributions are "
            f"known for {' and '.join(MEANS)}"
        )
    rounds = _chosen(list(kept_rounds(run)), sampling.rounds)
    if not rounds:
        raise ConfigError(
            f"{run}: kept no updates; run the simulation with simulation.keep_updates_gb, such as --set "
            "simulation.keep_updates_gb=10"
        )
    total = _Total(sampling)
    for done, kept in enumerate(rounds):
        progress(done, len(rounds))
        total.add(kept, score)
    progress(len(rounds), len(rounds))
    return total.contributions(rounds)


class _Total:
    """Adds up what the sites contributed in several rounds."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._values: dict[str, list[float]] = {}
        self._variances: dict[str, list[float]] = {}
        self._losses: dict[str, list[float]] = {}
        self._gains: list[float] = []
        self._orders = 0
        self._scored = 0

    def add(self, kept: KeptRound, score: Score) -> None:
        """Add a round."""

        @cache
        def worth(sites: frozenset[str]) -> float:
            self._scored += 1
            return score(kept.rebuilt(sites))

        sites = sorted(kept.updates)
        if len(sites) <= MOST_EXACT:
            shares = exact_shares(sites, worth)
        else:
            rng = np.random.default_rng(seed_of(kept.number, "orders"))
            shares = sampled_shares(sites, worth, self._sampling.orders, self._sampling.tolerance, rng)
            self._orders = self._sampling.orders
        losses = losses_without(sites, worth)
        for site in sites:
            self._values.setdefault(site, []).append(shares.values[site])
            self._variances.setdefault(site, []).append(shares.errors[site] ** 2)
            self._losses.setdefault(site, []).append(losses[site])
        self._gains.append(worth(frozenset(sites)) - worth(frozenset()))

    def contributions(self, rounds: Sequence[KeptRound]) -> Contributions:
        """Return the sums."""
        sites = {
            site: SiteContribution(
                math.fsum(self._values[site]),
                math.sqrt(math.fsum(self._variances[site])),
                math.fsum(self._losses[site]),
            )
            for site in sorted(self._values)
        }
        numbers = tuple(kept.number for kept in rounds)
        return Contributions(
            sites, math.fsum(self._gains), numbers, self._orders, self._sampling.patients, self._scored
        )


def _chosen(rounds: Sequence[KeptRound], most: int | None) -> list[KeptRound]:
    if most is None or most >= len(rounds):
        return list(rounds)
    return [rounds[index * len(rounds) // most] for index in range(most)]
