"""Composed privacy losses against the exact Gaussian mechanism and sampled losses; bad grids are refused."""

import math

import numpy as np
import pytest

from common.plan.privacy import Spend
from common.privacy.accounting import epsilon_of
from common.privacy.loss_distribution import Grid, compose, loss_of_step

GRID = Grid.around_zero(20.0, 1e-3)


def test_a_grid_has_zero_and_an_even_size() -> None:
    assert GRID.size % 2 == 0 and GRID.mesh == pytest.approx(1e-3)
    assert np.abs(GRID.losses).min() < 1e-12 and GRID.low <= -20 and GRID.high >= 20


@pytest.mark.parametrize("times", [1, 2, 5, 64])
def test_unsampled_steps_are_one_gaussian(times: int) -> None:
    """Exact by another formula: ``times`` Gaussian mechanisms are one with less noise."""
    exact = epsilon_of([Spend("training", 5.0, 1.0, times)], 1e-5)
    found = loss_of_step(GRID, 5.0, 1.0).repeated(times).epsilon(1e-5, 0.0, 0.0)
    assert found == pytest.approx(exact, rel=1e-4)
    assert compose([(loss_of_step(GRID, 5.0, 1.0), times), (loss_of_step(GRID, 3.0, 1.0), 2)]).epsilon(
        1e-5, 0.0, 0.0
    ) == pytest.approx(epsilon_of([Spend("training", (times / 25 + 2 / 9) ** -0.5, 1.0, 1)], 1e-5), rel=1e-4)


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (0.6, 0.5), (4.0, 1.0)])
def test_losses_are_distributed_as_drawn_ones(noise: float, rate: float) -> None:
    """Outcomes with the patient, whose loss is the logarithm of how much likelier they are than without."""
    rng = np.random.default_rng(0)
    x = rng.normal(scale=noise, size=400_000) + (rng.random(400_000) < rate)
    drawn = np.log(1 - rate + rate * np.exp((2 * x - 1) / (2 * noise**2)))
    loss = loss_of_step(GRID, noise, rate)
    assert loss.probabilities.sum() == pytest.approx(1)
    values = GRID.losses + loss.shift
    for quantile in (0.05, 0.5, 0.95, 0.999):
        below = loss.probabilities[values <= np.quantile(drawn, quantile)].sum()
        assert below == pytest.approx(quantile, abs=0.005)
    assert np.dot(values, loss.probabilities) == pytest.approx(drawn.mean(), abs=5 * drawn.std() / 400_000**0.5)


def test_grids_that_prove_nothing_are_refused() -> None:
    loss = loss_of_step(GRID, 1.0, 0.1)
    with pytest.raises(ArithmeticError, match="rounding errors"):
        loss.epsilon(1e-16, 0.0, 0.0)
    with pytest.raises(ArithmeticError, match="none of the losses"), np.errstate(invalid="ignore"):
        loss_of_step(Grid.around_zero(1.0, 1e-3), 0.01, 1.0)
    with pytest.raises(ArithmeticError, match="overflow"):
        loss_of_step(Grid.around_zero(800.0, 0.1), 1.0, 1.0).epsilon(1e-5, 0.0, 0.0)
    with pytest.raises(ArithmeticError, match="too small"):
        loss_of_step(GRID, 1e-4, 0.1)
    assert math.isfinite(loss.epsilon(1e-5, 0.0, 0.0))
