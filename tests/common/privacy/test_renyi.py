"""Rényi divergences against a direct integral, exact formulas and Opacus; bad noise costs everything."""

import math
import warnings

import numpy as np
import pytest
from opacus.accountants.analysis import rdp
from scipy.integrate import quad

from common.privacy.renyi import ORDERS, epsilon_at, renyi_curve

IS_WHOLE = np.floor(ORDERS) == ORDERS


@pytest.mark.parametrize(("noise", "rate"), [(0.1, 0.01), (0.3, 1e-4), (1.0, 0.1), (1.234, 0.5), (5.0, 0.9)])
def test_the_curve_is_that_of_opacus(noise: float, rate: float) -> None:
    theirs = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(ORDERS))
    np.testing.assert_allclose(renyi_curve(noise, rate), theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("noise", "rate"), [(0.5, 0.2), (2.0, 0.01)])
@pytest.mark.parametrize("order", [1.1, 2.0, 7.3])
def test_a_divergence_is_its_integral(noise: float, rate: float, order: float) -> None:
    def integrand(x: float) -> float:
        ratio = 1 - rate + rate * math.exp((2 * x - 1) / (2 * noise**2))
        return ratio**order * math.exp(-((x / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))

    moment = sum(quad(integrand, *ends, epsabs=1e-13)[0] for ends in ((-10 * noise, 1), (1, order + 10 * noise)))
    [found] = renyi_curve(noise, rate)[np.isclose(ORDERS, order)]
    assert found == pytest.approx(math.log(moment) / (order - 1), rel=1e-6)


def test_without_sampling_it_is_that_of_a_gaussian() -> None:
    np.testing.assert_allclose(renyi_curve(3.0, 1.0), ORDERS / 18)
    # Sampling of nearly everybody is nearly that.
    np.testing.assert_allclose(renyi_curve(3.0, 1 - 1e-9), ORDERS / 18, rtol=1e-6)


def test_too_little_noise_proves_nothing_but_is_no_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isinf(renyi_curve(1e-200, 0.1)).all() and np.isinf(renyi_curve(1e-200, 1.0)).all()
        little = renyi_curve(0.01, 0.1)
    assert np.isinf(little[~IS_WHOLE]).all() and np.isfinite(little[IS_WHOLE]).all()
    assert epsilon_at(renyi_curve(1e-200, 0.1), 1e-5) == math.inf
    assert 1000 < epsilon_at(little, 1e-5) < math.inf


def test_a_step_that_costs_next_to_nothing_is_not_free() -> None:
    """Its divergence, about order q**2 / (2 s**2), is smaller than what floating point can resolve."""
    exact = ORDERS * 1e-4**2 / (2 * 1e4**2)
    assert (renyi_curve(1e4, 1e-4)[ORDERS < 64] > exact[ORDERS < 64]).all()
