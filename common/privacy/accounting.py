"""Privacy accounting: the epsilon of spends composed over rounds and runs.

The accountants come from Opacus. The reported epsilon is the smaller of two upper bounds: that of the PRV accountant
(Gopi et al. 2021), which composes mechanisms with different noise, and that of Rényi accounting (Mironov et al. 2019;
``accountant="rdp"``). If every patient takes part in every step, the composition of Gaussian mechanisms is itself a
Gaussian mechanism, whose epsilon is known exactly (Balle and Wang 2018).

Sites add discrete noise. Rounding continuous Gaussian noise to whole steps is post-processing and costs nothing; the
discrete Gaussian differs from that by a factor of 1 + 2**-48 in each probability, because a step is so small. With the
sampler's own error this adds at most 2**-46 per released value to epsilon (``deploy/docs/privacy.md``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr

from common.plan.privacy import Spend

Accountant = Literal["prv", "rdp"]

EPSILON_ERROR = 0.002
"""Largest relative error of the reported epsilon, by the PRV accountant's own estimate, unless epsilon is tiny."""
MOST_POINTS = 2**20
"""Largest grid of the PRV accountant; a tiny epsilon is bounded with a larger relative error instead."""


# Opacus' own orders and larger ones. Only small orders may be fractional: Opacus' series loses all digits beyond them.
_ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100)), *range(12, 64), *(2**n for n in range(6, 11)))
_MOST_CURVES = 64
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
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Opacus warns about logarithms whose results it does not use, and about orders that are good enough.
        warnings.simplefilter("ignore")
        bound = _renyi_epsilon(history, delta)
        return bound if accountant == "rdp" else min(bound, _prv_epsilon(history, delta, EPSILON_ERROR * bound))


@lru_cache(maxsize=1)
def _opacus() -> tuple[Any, Any]:
    """Import Opacus' analysis late: it imports torch, which commands such as ``ledger`` may not need."""
    from opacus.accountants.analysis import prv, rdp

    return prv, rdp


@lru_cache(maxsize=_MOST_CURVES)
def _renyi_curve(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """Return the Rényi divergence of one step at each of ``_ORDERS``; cached because it takes most of the time."""
    _, rdp = _opacus()
    return np.asarray(
        rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=_ORDERS), np.float64
    )


def _renyi_epsilon(history: StepCounts, delta: float) -> float:
    curve = sum(_renyi_curve(multiplier, sample_rate) * steps for multiplier, sample_rate, steps in history)
    _, rdp = _opacus()
    return float(rdp.get_privacy_spent(orders=_ORDERS, rdp=curve, delta=delta)[0])


def least_epsilon(delta: float) -> float:
    """Return the epsilon at ``delta`` that Rényi accounting states without any loss of privacy.

    The conversion of a Rényi divergence to epsilon (Balle et al. 2020, theorem 21) costs this much at the
    largest order.
    """
    order = float(_ORDERS[-1])
    return max(0.0, -(math.log(delta) + math.log(order)) / (order - 1) + math.log1p(-1 / order))


def _prv_epsilon(history: StepCounts, delta: float, error: float) -> float:
    """Return the PRV accountant's upper bound; infinite if its arithmetic fails.

    Follows ``opacus.accountants.PRVAccountant``, but reuses the cached Rényi curves.
    """
    prv, _ = _opacus()
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
        mesh = error / errors_in_mesh
        domain = prv.Domain.create_aligned(-reach - 3, reach + 3, mesh)
        losses = [
            prv.discretize(
                prv.TruncatedPrivacyRandomVariable(
                    prv.PoissonSubsampledGaussianPRV(sample_rate, multiplier), domain.t_min, domain.t_max
                ),
                domain,
            )
            for multiplier, sample_rate, _ in history
        ]
        composed = prv.compose_heterogeneous(dprvs=losses, num_self_compositions=counts)
        bound = float(composed.compute_epsilon(delta, delta_error, error)[2])
    except (ArithmeticError, RuntimeError, ValueError):
        return math.inf
    return bound if math.isfinite(bound) else math.inf


def _gaussian_epsilon(shift: float, delta: float) -> float:
    """Return the epsilon of a Gaussian mechanism with sensitivity of ``shift`` standard deviations.

    delta(epsilon) = Phi(shift / 2 - epsilon / shift) - exp(epsilon) Phi(-shift / 2 - epsilon / shift).
    """

    def excess(epsilon: float) -> float:
        first = log_ndtr(shift / 2 - epsilon / shift)
        second = epsilon + log_ndtr(-shift / 2 - epsilon / shift)
        # For small delta both terms nearly cancel, so compute their difference from their logarithms.
        return float(first + np.log(-np.expm1(min(second - first, -1e-300))) - math.log(delta))

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9, rtol=1e-9))
