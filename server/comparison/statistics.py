"""Statistics over patients: bootstrap intervals, and paired tests of several arms against one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

Values = NDArray[np.float64]
RESAMPLES = 10_000
_AT_ONCE = 2_000_000
"""Most values drawn in one piece, which bounds memory."""
_SEED = 20_231
FEWEST_TO_TELL = 6
"""Paired patients below which even differences of one sign are no evidence: Wilcoxon's p is 0.06 at least."""


@dataclass(frozen=True)
class Interval:
    """A mean, or another statistic of means, with its 95 % percentile bootstrap interval (Efron and Tibshirani, 1993).

    Attributes
    ----------
    low, high
        None if a group has a single patient: its spread is unknown.
    patients
        How many there are.
    """

    value: float
    low: float | None
    high: float | None
    patients: int


def bootstrap(groups: Sequence[Values], statistic: Callable[[Values], Values]) -> Interval | None:
    """Compute a statistic of means over patients, and its interval; None without patients.

    Parameters
    ----------
    groups
        One array (patients, columns) per group. Patients are drawn with replacement within their group, all columns of
        a patient together, so that paired scores stay paired.
    statistic
        Maps means over patients, averaged over groups, (..., columns), to the statistic (...).
    """
    filled = [group for group in groups if len(group)]
    patients = sum(len(group) for group in filled)
    if not patients:
        return None
    value = float(statistic(np.mean([group.mean(axis=0) for group in filled], axis=0)))
    if min(map(len, filled)) < 2:
        return Interval(value, None, None, patients)
    # The same draws for every statistic of the same groups: intervals of arms differ by their scores alone.
    rng = np.random.default_rng(_SEED)
    drawn = statistic(np.mean([_resampled_means(group, rng) for group in filled], axis=0))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high), patients)


def _resampled_means(group: Values, rng: np.random.Generator) -> Values:
    """Return the means of ``RESAMPLES`` samples of a group's size, (resamples, columns)."""
    size = len(group)
    at_once = max(1, _AT_ONCE // group.size)
    parts = []
    for first in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - first)
        parts.append(group[rng.integers(size, size=(count, size))].mean(axis=1))
    return np.concatenate(parts)


def wilcoxon_p(differences: Values) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test on paired differences; 1 if all are zero."""
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p values for their number (Holm, 1979): the smallest times n, the next times n - 1, never decreasing."""
    corrected: dict[str, float] = {}
    largest = -math.inf
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
