"""Privacy accounting: the epsilon of spends composed over rounds and runs.

The reported epsilon is the smaller of two upper bounds: that of the privacy-loss distribution (Gopi et al. 2021;
``loss_distribution.py``), which composes mechanisms with different noise, and that of Rényi accounting (Mironov et al.
2019; ``renyi.py``, ``accountant="rdp"``). If every patient takes part in every step, the composition of Gaussian
mechanisms is itself a Gaussian mechanism, whose epsilon is known exactly (Balle and Wang 2018). Tests compare all of
them with the accountants of Opacus and Google, and ``second_opinion.py`` asks Opacus about every plan.

Sites add discrete noise. Rounding continuous Gaussian noise to whole steps is post-processing and costs nothing; the
discrete Gaussian differs from that by a factor of 1 + 2**-48 in each probability, because a step is so small. With the
sampler's own error this adds at most 2**-46 per released value to epsilon (``deploy/docs/privacy.md``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import log_ndtr

from common.plan.privacy import Spend
from common.privacy.loss_distribution import Grid, compose, loss_of_step
from common.privacy.renyi import ORDERS, epsilon_at, renyi_curve

Accountant = Literal["prv", "rdp"]

EPSILON_ERROR = 0.002
"""Largest relative error of the reported epsilon, by the PRV accountant's own estimate, unless epsilon is tiny."""
MOST_POINTS = 2**20
"""Largest grid of the PRV accountant; a tiny epsilon is bounded with a larger relative error instead."""
StepCounts = tuple[tuple[float, float, int], ...]
"""Noise multiplier, sample rate and number of steps of each kind of step, in ascending order."""


def epsilon_of(spends: Sequence[Spend], delta: float, accountant: Accountant = "prv") -> float:
    """Return the epsilon at ``delta`` of all ``spends`` composed on the same patients; 0 for none.

    It is an upper bound. For spends of different purposes on disjoint patients, compute the epsilon of each purpose
    and take the larger.
    """
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        key = (spend.noise_multiplier, spend.sample_rate)
        steps[key] = steps.get(key, 0) + spend.steps
    # Rounding errors in the accountants can make a tiny epsilon negative.
    return max(0.0, _composed(tuple(sorted((*key, count) for key, count in steps.items() if count)), delta, accountant))


def largest_epsilon(spends: Sequence[Spend], delta: float) -> float:
    """Return the epsilon at ``delta`` of the patients who lose most, if each is used for one purpose; 0 for none."""
    purposes = {spend.purpose for spend in spends}
    return max((epsilon_of([one for one in spends if one.purpose == each], delta) for each in purposes), default=0.0)


@lru_cache(maxsize=512)
def _composed(history: StepCounts, delta: float, accountant: Accountant) -> float:
    if not history:
        return 0.0
    if accountant == "prv" and all(sample_rate == 1 for _, sample_rate, _ in history):
        return _gaussian_epsilon(math.sqrt(sum(steps / multiplier**2 for multiplier, _, steps in history)), delta)
    bound = _renyi_epsilon(history, delta)
    return bound if accountant == "rdp" else min(bound, _prv_epsilon(history, delta, EPSILON_ERROR * bound))


def _renyi_epsilon(history: StepCounts, delta: float) -> float:
    return epsilon_at(np.sum([renyi_curve(*step) * steps for *step, steps in history], axis=0), delta)


def least_epsilon(delta: float) -> float:
    """Return the epsilon at ``delta`` that Rényi accounting states without any loss of privacy.

    The conversion of a Rényi divergence to epsilon (Balle et al. 2020, theorem 21) costs this much at the
    largest order.
    """
    order = float(ORDERS[-1])
    return max(0.0, -(math.log(delta) + math.log(order)) / (order - 1) + math.log1p(-1 / order))


def _prv_epsilon(history: StepCounts, delta: float, error: float) -> float:
    """Return the PRV accountant's upper bound; infinite if its arithmetic fails."""
    delta_error = delta / 1000
    counts = [steps for _, _, steps in history]
    # Remark 5.6 of Gopi et al.: beyond this reach, the sum and each single step have only a part of delta_error.
    reach = max(
        error,
        _renyi_epsilon(history, delta_error / 4),
        *(_renyi_epsilon(((multiplier, rate, 1),), delta_error / (8 * sum(counts))) for multiplier, rate, _ in history),
    )
    errors_in_mesh = math.sqrt(sum(counts) * math.log(12 / delta_error) / 2)
    error = max(error, 2 * (reach + 3) * errors_in_mesh / MOST_POINTS)
    try:
        with np.errstate(all="ignore"):
            grid = Grid.around_zero(reach + 3, error / errors_in_mesh)
            steps = [(loss_of_step(grid, multiplier, rate), count) for multiplier, rate, count in history]
            bound = compose(steps).epsilon(delta, delta_error, error)
    except (ArithmeticError, ValueError):
        return math.inf
    return bound if math.isfinite(bound) else math.inf


def _gaussian_epsilon(shift: float, delta: float) -> float:
    """Return the epsilon of a Gaussian mechanism with sensitivity of ``shift`` standard deviations.

    delta(epsilon) = Phi(shift / 2 - epsilon / shift) - exp(epsilon) Phi(-shift / 2 - epsilon / shift).
    """

    def exceeds(epsilon: float) -> bool:
        first = log_ndtr(shift / 2 - epsilon / shift)
        second = epsilon + log_ndtr(-shift / 2 - epsilon / shift)
        # For small delta both terms nearly cancel, so compute their difference from their logarithms.
        return bool(first + np.log(-np.expm1(min(second - first, -1e-300))) > math.log(delta))

    if not exceeds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while exceeds(high):
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high
