"""What differential privacy costs: spends, their sum over rounds and runs, and the noise that a budget allows.

The accountants are Opacus'. The reported epsilon is the upper bound of its PRV accountant (Gopi et al. 2021), which
composes mechanisms of different noise; Rényi accounting (``accountant="rdp"``) is the cross-check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from common.privacy_config import PrivacyConfig

Purpose = Literal["training", "validation"]
Accountant = Literal["prv", "rdp"]

# Of the bound on epsilon and of the noise that is found for an epsilon.
EPSILON_ERROR = 0.01


@dataclass(frozen=True)
class Spend:
    """One use of patients' data: ``steps`` times a Gaussian mechanism on a Poisson sample.

    purpose: which patients: those who are trained on, or those whom models are scored on.
    noise_multiplier: standard deviation of the noise in units of one patient's largest contribution.
    sample_rate: probability with which a patient takes part; 1 for all.
    """

    purpose: Purpose
    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True)
class PrivacyPlan:
    """The noise of a whole federation, the same at every site.

    training, validation: what one round costs the patients of either kind; ``validation`` is None if no score leaves.
    """

    training: Spend
    validation: Spend | None


def plan_privacy(config: PrivacyConfig, rounds: int, local_steps: int) -> PrivacyPlan:
    """Calibrates the noise once for the whole federation: ``rounds`` x ``local_steps`` steps.

    A patient is either trained on or validated on, so either kind may spend the whole budget. Models are scored
    ``rounds`` + 1 times.
    """
    multiplier = noise_for(config.epsilon, config.delta, config.sample_rate, rounds * local_steps)
    training = Spend("training", multiplier, config.sample_rate, local_steps)
    if config.validation == "off":
        return PrivacyPlan(training, None)
    return PrivacyPlan(training, Spend("validation", noise_for(config.epsilon, config.delta, 1.0, rounds + 1), 1.0, 1))


def epsilon_of(spends: Sequence[Spend], delta: float, accountant: Accountant = "prv") -> float:
    """The epsilon at ``delta`` of all ``spends`` together on the same patients; 0 for none.

    An upper bound: for spends of different purposes on disjoint patients, ask for each purpose and take the larger.
    """
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        key = (spend.noise_multiplier, spend.sample_rate)
        steps[key] = steps.get(key, 0) + spend.steps
    return _composed(tuple(sorted((*key, count) for key, count in steps.items() if count)), delta, accountant)


@lru_cache(maxsize=512)
def _composed(history: tuple[tuple[float, float, int], ...], delta: float, accountant: Accountant) -> float:
    # Late: it brings torch with it, which a command such as ``ledger`` may not need.
    from opacus.accountants import PRVAccountant, RDPAccountant

    if not history:
        return 0.0
    if accountant == "rdp":
        renyi = RDPAccountant()
        renyi.history = list(history)
        return float(renyi.get_epsilon(delta))
    exact = PRVAccountant()
    exact.history = list(history)
    return float(exact.get_epsilon(delta, eps_error=EPSILON_ERROR))


@lru_cache(maxsize=128)
def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier, to 0.1 %, with which ``steps`` steps stay within ``epsilon`` at ``delta``.

    Found by bisection on the PRV accountant's upper bound.
    """

    def spent(multiplier: float) -> float:
        return epsilon_of([Spend("training", multiplier, sample_rate, steps)], delta)

    low, high = 0.0, 1.0
    while spent(high) > epsilon:
        low, high = high, 2 * high
    if low == 0.0:
        low = high / 2
        while spent(low) <= epsilon:
            low, high = low / 2, low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high
