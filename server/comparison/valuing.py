"""How much of a comparison goes into what each site contributed.

Where the federation file keeps updates (``simulation.keep_updates_gb``), all of them are looked at and stay. Else a
comparison keeps those of a few rounds of one arm until they are looked at, and scores no more scans with models built
from them than the run itself scores while it trains. Most of a run's time goes into training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config.federation import FederationConfig
from server.comparison.arms import REFERENCE, Arm
from server.contributions.valuation import MEANS, MOST_EXACT, Sampling

ORDERS = 4
"""Random orders of the sites in each round, if there are too many for all sets of them."""
MOST_SCANS = 8
"""Validation scans of each site that models are scored on, or fewer."""
MOST_GB = 2.0
"""For the kept updates of one run."""


@dataclass(frozen=True)
class Valuing:
    """What is looked at in a run.

    Attributes
    ----------
    sampling
        How much is computed.
    keep_gb
        Space for updates that are kept for this alone; 0 if the federation file keeps them, and they stay.
    """

    sampling: Sampling
    keep_gb: float = 0.0


def valued_arm(arms: Sequence[Arm]) -> str:
    """Return the name of the arm whose sites are valued by default: FedAvg, or the first that averages; else empty."""
    names = [arm.name for arm in arms if arm.data == "sites" and arm.base in MEANS]
    return REFERENCE if REFERENCE in names else next(iter(names), "")


def valuing_of(config: FederationConfig, by_default: bool, validation: Sequence[int], size: int) -> Valuing | None:
    """Return what is looked at in a run; None if nothing is.

    Parameters
    ----------
    config
        The run's configuration.
    by_default
        Whether its sites are valued although the file keeps no updates.
    validation
        Number of validation scans of every site.
    size
        Weights of the model.
    """
    if config.strategy.name not in MEANS or config.privacy is not None or len(validation) < 2:
        return None
    if config.simulation is not None and config.simulation.keep_updates_gb:
        return Valuing(Sampling())
    return affordable(config.rounds, validation, size) if by_default else None


def affordable(rounds: int, validation: Sequence[int], size: int) -> Valuing | None:
    """Return as many rounds as score no more scans than the run itself does; None if not even one.

    Parameters
    ----------
    rounds
        Of the run; it scores its model before each, and once at the end.
    validation, size
        As for ``valuing_of``.
    """
    count = len(validation)
    models = 2**count if count <= MOST_EXACT else 2 + count + ORDERS * (count - 2)
    one = 4e-9 * size * (count + 1)
    for scans in (MOST_SCANS, MOST_SCANS // 2, MOST_SCANS // 4, 1):
        scored = models * sum(min(scans, there) for there in validation)
        number = min((rounds + 1) * sum(validation) // max(scored, 1), rounds, int(MOST_GB / one))
        if number:
            # Half a round more, so that no rounding makes it one less.
            return Valuing(Sampling(orders=ORDERS, patients=scans), (number + 0.5) * one)
    return None
