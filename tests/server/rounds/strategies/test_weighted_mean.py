"""The running mean against the mean of everything at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rounds.strategies.weighted_mean import WeightedMean


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(0, 2**31))
def test_equals_numpy_average_in_any_order(weights: list[int], seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(len(weights), 50)).astype(np.float32)
    expected = np.average(vectors.astype(np.float64), axis=0, weights=weights)
    for order in (range(len(weights)), reversed(range(len(weights)))):
        mean = WeightedMean(50)
        for index in order:
            mean.add(vectors[index], weights[index])
        np.testing.assert_allclose(mean.mean(), expected, rtol=1e-6, atol=1e-7)


def test_one_site_is_returned_bit_for_bit() -> None:
    vector = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    mean = WeightedMean(1000)
    mean.add(vector, 4)
    np.testing.assert_array_equal(mean.mean(), vector)


def test_what_was_added_is_not_changed() -> None:
    vector = np.ones(3, np.float32)
    mean = WeightedMean(3)
    mean.add(vector, 2)
    mean.add(3 * vector, 2)
    np.testing.assert_array_equal(vector, [1, 1, 1])
    np.testing.assert_array_equal(mean.mean(), [2, 2, 2])


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="nothing"):
        WeightedMean(3).mean()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        WeightedMean(3).add(np.ones(3, np.float32), weight)
