"""Intervals and tests against closed forms and slow versions that are obviously right."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, rankdata

from server.comparison.statistics import Values, bootstrap, holm, wilcoxon_p


def first(means: Values) -> Values:
    return means[..., 0]


def difference(means: Values) -> Values:
    return means[..., 0] - means[..., 1]


def column(*values: float) -> Values:
    return np.array(values, dtype=np.float64)[:, None]


def test_the_interval_of_zeros_and_ones_is_that_of_the_binomial_distribution() -> None:
    """The sum of a resample of 12 ones and 18 zeros is binomial."""
    found = bootstrap([column(*[1.0] * 12, *[0.0] * 18)], first)
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx(tuple(binom.ppf([0.025, 0.975], 30, 0.4) / 30))
    assert found.patients == 30


def test_groups_count_alike_and_patients_are_drawn_within_theirs() -> None:
    """Groups without spread have no interval, however much they differ from each other."""
    found = bootstrap([column(0.2, 0.2, 0.2), column(0.8, 0.8), column()], first)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.patients == 5


def test_pairs_stay_pairs() -> None:
    """Patients differ much, their differences do not."""
    scores = np.random.default_rng(0).uniform(size=20)
    found = bootstrap([np.stack([scores + 0.01, scores], axis=1)], difference)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))


def test_one_patient_has_no_interval_and_none_has_nothing() -> None:
    found = bootstrap([column(0.7)], first)
    assert found is not None
    assert (found.value, found.low, found.high) == (pytest.approx(0.7), None, None)
    assert bootstrap([column(), column()], first) is None


def test_a_group_of_one_patient_leaves_no_interval() -> None:
    """Resampling one patient gives the same patient: an interval would leave the group's spread out."""
    found = bootstrap([column(0.2, 0.4, 0.6), column(0.8)], first)
    assert found is not None
    assert (found.value, found.low, found.high, found.patients) == (pytest.approx(0.6), None, None, 4)


def test_memory_is_bounded_and_the_interval_the_same_for_many_patients() -> None:
    """The mean of many patients is normal."""
    values = np.random.default_rng(1).normal(0.8, 0.1, size=3000)
    found = bootstrap([values[:, None]], first)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    error = values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("seed", range(4))
def test_wilcoxon_counts_the_signs_that_are_as_extreme(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.3, 1, size=9)
    ranks = rankdata(np.abs(differences))

    def distance(signs: Values) -> float:
        return abs(float(ranks[signs > 0].sum()) - ranks.sum() / 2)

    seen = distance(np.sign(differences))
    extreme = [distance(np.array(signs)) >= seen - 1e-9 for signs in product((-1.0, 1.0), repeat=9)]
    assert wilcoxon_p(differences) == pytest.approx(np.mean(extreme))


def test_equal_scores_are_no_difference() -> None:
    assert wilcoxon_p(np.zeros(5)) == 1.0


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.2}) == {"a": 0.2}
    assert holm({}) == {}
