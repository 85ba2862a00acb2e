"""Rényi differential privacy of the sampled Gaussian mechanism (Mironov, Talwar and Zhang 2019)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

# 1.1, 1.2, ... 10.9, larger integers, and a few very large ones for mechanisms that cost little.
ORDERS: NDArray[np.float64] = np.array(
    [*(1 + tenth / 10 for tenth in range(1, 100)), *range(12, 64), *(2**n for n in range(6, 11))], np.float64
)
"""Orders of the divergence, ascending; shape (orders,)."""
_LEAST_NOISE_OF_FRACTIONS = 0.05
_REACH = 10.0  # standard deviations; what lies beyond is less than 1e-20 of the integral
_ROUNDING = 1e-15
_MOST_CURVES = 1024


@lru_cache(maxsize=_MOST_CURVES)
def renyi_curve(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """Return the Rényi divergence of one step at each of ``ORDERS``, shape (orders,); cached.

    The larger of both directions, a patient added or removed (theorem 4). It is infinite for fractional orders if the
    noise is too small for a federation's budget in any case.
    """
    noise = np.float64(noise_multiplier)
    moments = np.full_like(ORDERS, np.inf)
    is_whole = np.floor(ORDERS) == ORDERS
    with np.errstate(all="ignore"):
        if sample_rate == 1:
            return ORDERS / (2 * noise**2)
        moments[is_whole] = _whole_moments(ORDERS[is_whole], noise, sample_rate)
        if noise >= _LEAST_NOISE_OF_FRACTIONS:
            moments[~is_whole] = _moments(ORDERS[~is_whole], noise, sample_rate)
    # Infinite terms make a moment undefined. Rounding must not make a tiny one smaller than it is.
    moments = np.maximum(np.nan_to_num(moments, nan=np.inf, posinf=np.inf), 0.0) + _ROUNDING
    return moments / (ORDERS - 1)


def epsilon_at(curve: NDArray[np.float64], delta: float) -> float:
    """Return the smallest epsilon at ``delta`` that a curve over ``ORDERS`` proves (Balle et al. 2020, theorem 21)."""
    return float(np.min(curve - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1) + np.log1p(-1 / ORDERS)))


def _whole_moments(orders: NDArray[np.float64], noise: np.float64, rate: float) -> NDArray[np.float64]:
    """Return log A, the logarithm of the moment, at integer orders: a binomial sum (section 3.3)."""
    taken = np.arange(orders.max() + 1)
    order = orders[:, None]
    left = np.maximum(order - taken, 0)
    terms = gammaln(order + 1) - gammaln(taken + 1) - gammaln(left + 1) + taken * math.log(rate)
    terms = terms + left * math.log1p(-rate) + taken * (taken - 1) / (2 * noise**2)
    return _log_sum(np.where(taken <= order, terms, -np.inf))


def _moments(orders: NDArray[np.float64], noise: np.float64, rate: float) -> NDArray[np.float64]:
    """Return log A at any orders: the mean of (1 - q + q exp(z / s - 1 / (2 s**2)))**order over a standard normal z.

    The trapezoidal rule converges geometrically, because the integrand is analytic in a strip of half-width pi s.
    """
    step = min(0.25, noise / 3)
    z = np.arange(-_REACH, orders.max() / noise + _REACH, step)
    base = np.logaddexp(math.log1p(-rate), math.log(rate) + z / noise - 1 / (2 * noise**2))
    return _log_sum(orders[:, None] * base - z**2 / 2 + math.log(step / math.sqrt(2 * math.pi)))


def _log_sum(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the sum over the last axis, from logarithms."""
    largest = logarithms.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(logarithms - largest).sum(axis=-1)) + largest[:, 0])
