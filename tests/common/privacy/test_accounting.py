"""Epsilons against an independent accountant, exact formulas and simple bounds; noise that spends what it may."""

import math
import warnings
from functools import cache

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from pydantic import ValidationError
from scipy.stats import norm

from common.config.federation import FederationConfig
from common.config.privacy import AdaptiveClipping, PrivacyConfig
from common.errors import ConfigError
from common.plan.privacy import Spend
from common.privacy.accounting import epsilon_of, largest_epsilon, least_epsilon
from common.privacy.calibration import calibrate, check_epsilon, gradient_noise, noise_for
from common.privacy.renyi import renyi_curve

DELTAS = (1e-5, 1e-6)
# Each: what is composed, as (noise multiplier, sample rate, steps).
SETTINGS: tuple[tuple[tuple[float, float, int], ...], ...] = (
    ((1.0, 0.1, 200),),
    ((2.0, 0.5, 6),),
    ((0.6, 0.01, 1000),),
    ((4.0, 0.1, 400),),
    ((20.0, 0.1, 400),),
    ((5.0, 1.0, 21),),
    ((100.0, 1.0, 3),),
    ((0.5, 0.05, 10),),
    ((0.4, 0.5, 3),),
    ((1.0, 0.001, 10000),),
    ((6.0, 0.25, 1000),),
    ((10.694, 0.2, 200),),
    ((1.0, 0.1, 100), (2.0, 0.3, 50)),
    ((3.0, 1.0, 4), (1.5, 0.05, 300)),
    ((4.0, 1.0, 4), (8.0, 1.0, 10)),
)


def spends(parts: tuple[tuple[float, float, int], ...]) -> list[Spend]:
    return [Spend("training", noise, rate, steps) for noise, rate, steps in parts]


@cache
def googles(parts: tuple[tuple[float, float, int], ...]) -> PLDAccountant:
    """Composes discretised distributions of the privacy loss, for patients added and for patients removed."""
    accountant = PLDAccountant(value_discretization_interval=3e-4)
    for noise, rate, steps in parts:
        gaussian = dp_event.GaussianDpEvent(noise)
        accountant.compose(gaussian if rate == 1 else dp_event.PoissonSampledDpEvent(rate, gaussian), steps)
    return accountant


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("parts", SETTINGS, ids=str)
def test_epsilon_is_within_one_percent_of_googles(parts: tuple[tuple[float, float, int], ...], delta: float) -> None:
    expected, epsilon = googles(parts).get_epsilon(delta), epsilon_of(spends(parts), delta)
    assert epsilon == pytest.approx(expected, rel=0.01)
    # An upper bound; their own discretisation rounds up too.
    assert epsilon >= expected * 0.999
    # So is Rényi accounting, a looser one.
    assert epsilon_of(spends(parts), delta, "rdp") > expected


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 5.0, 40.0])
def test_without_sampling_epsilon_is_that_of_one_gaussian(multiplier: float) -> None:
    """Put back into the formula of Balle and Wang, written with plain distribution functions, it gives delta."""
    delta, steps = 1e-5, 9
    epsilon = epsilon_of([Spend("validation", multiplier, 1.0, steps)], delta)
    shift = math.sqrt(steps) / multiplier
    back = norm.cdf(shift / 2 - epsilon / shift) - math.exp(epsilon) * norm.cdf(-shift / 2 - epsilon / shift)
    assert back == pytest.approx(delta, rel=1e-3)


def test_rounds_and_runs_compose_as_one_long_round() -> None:
    once = epsilon_of([Spend("training", 1.2, 0.2, 60)], 1e-5)
    rounds = [Spend("training", 1.2, 0.2, 10)] * 3
    assert epsilon_of(rounds + rounds, 1e-5) == once
    assert epsilon_of(rounds, 1e-5) < once < 2 * epsilon_of(rounds, 1e-5)
    other_run = Spend("training", 2.5, 0.1, 40)
    both = epsilon_of([*rounds, other_run], 1e-5)
    assert max(epsilon_of(rounds, 1e-5), epsilon_of([other_run], 1e-5)) < both
    assert both == epsilon_of([other_run, *rounds], 1e-5)


def test_patients_of_different_purposes_are_not_added_up() -> None:
    trained, scored = Spend("training", 1.0, 0.1, 20), Spend("validation", 5.0, 1.0, 3)
    assert largest_epsilon([trained, scored], 1e-5) == max(epsilon_of([trained], 1e-5), epsilon_of([scored], 1e-5))
    assert largest_epsilon([trained, trained], 1e-5) == epsilon_of([trained, trained], 1e-5)
    assert largest_epsilon([], 1e-5) == 0


def test_nothing_spent_is_zero() -> None:
    assert epsilon_of([], 1e-5) == 0
    assert epsilon_of([Spend("training", 1.0, 0.1, 0)], 1e-5) == 0


def test_less_noise_more_steps_or_more_sampling_cost_more() -> None:
    base = epsilon_of([Spend("training", 1.0, 0.1, 50)], 1e-5)
    for other in (Spend("training", 0.9, 0.1, 50), Spend("training", 1.0, 0.1, 60), Spend("training", 1.0, 0.12, 50)):
        assert epsilon_of([other], 1e-5) > base


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(8, 0.1, 400), (0.5, 0.2, 50), (30, 0.5, 10), (3, 1.0, 21)])
def test_noise_spends_the_whole_budget_and_no_more(epsilon: float, rate: float, steps: int) -> None:
    noise = noise_for(epsilon, 1e-5, rate, steps)
    assert epsilon * 0.99 < epsilon_of([Spend("training", noise, rate, steps)], 1e-5) <= epsilon
    assert epsilon_of([Spend("training", noise / 1.002, rate, steps)], 1e-5) > epsilon


def test_accounting_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epsilon_of([Spend("training", 1.01, 0.11, 7)], 1e-5)
        epsilon_of([Spend("training", 90.0, 0.01, 2)], 1e-5, "rdp")


def test_adaptive_clipping_is_paid_for_out_of_the_same_noise() -> None:
    """The gradients' sum and half the count, both scaled to unit sensitivity, are one Gaussian mechanism."""
    total, adaptive = 1.5, AdaptiveClipping(count_noise=2.0)
    gradients = gradient_noise(total, adaptive)
    assert gradients > total
    count = 2 * adaptive.count_noise
    assert gradients**-2 + count**-2 == pytest.approx(total**-2)
    assert gradient_noise(total, None) == total


def test_a_count_that_costs_more_than_the_budget_is_refused() -> None:
    config = PrivacyConfig(epsilon=1, sample_rate=0.5, adaptive_clipping=AdaptiveClipping(count_noise=0.5))
    with pytest.raises(ConfigError, match="count_noise: must be more than"):
        calibrate(config, 10, 10)


def test_a_plan_ends_at_the_budget_for_either_kind_of_patient() -> None:
    rounds, steps = 6, 5
    plan = calibrate(PrivacyConfig(epsilon=2, sample_rate=0.3), rounds, steps)
    assert plan.validation is not None
    assert 1.98 < epsilon_of([plan.training] * rounds, 1e-5) <= 2
    assert 1.98 < epsilon_of([plan.validation] * (rounds + 1), 1e-5) <= 2
    assert calibrate(PrivacyConfig(epsilon=2, sample_rate=0.3, validation="off"), rounds, steps).validation is None


def test_early_stopping_without_scores_is_refused() -> None:
    private = {"name": "x", "rounds": 3, "privacy": {"epsilon": 1, "validation": "off"}}
    FederationConfig.model_validate(private)
    FederationConfig.model_validate({"name": "x", "rounds": 3, "privacy": {"epsilon": 1}, "early_stop": {}})
    with pytest.raises(ValidationError, match=r"early_stop needs scores, and privacy.validation is off"):
        FederationConfig.model_validate(private | {"early_stop": {}})


def test_a_round_more_works_out_no_curve_anew() -> None:
    mechanism = Spend("training", 1.234, 0.123, 10)
    epsilon_of([mechanism], 1e-5)
    before = renyi_curve.cache_info()
    assert epsilon_of([mechanism] * 3, 1e-5) > epsilon_of([mechanism] * 2, 1e-5)
    after = renyi_curve.cache_info()
    assert after.hits > before.hits and after.misses == before.misses


@pytest.mark.parametrize("parts", SETTINGS, ids=str)
def test_epsilons_are_those_of_opacus_own_accountants(parts: tuple[tuple[float, float, int], ...]) -> None:
    bounds = []
    for accountant, options in (
        (PRVAccountant(), {"eps_error": 0.002 * epsilon_of(spends(parts), 1e-5, "rdp")}),
        (RDPAccountant(), {}),
    ):
        accountant.history = list(parts)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                bounds.append(float(accountant.get_epsilon(1e-5, **options)))
            except ValueError:  # sampling at a rate of 1 is beyond its arithmetic
                assert any(rate == 1 for _, rate, _ in parts)
    # Larger orders than Opacus' own make the Rényi bound smaller for the mechanisms that cost little.
    found, theirs = epsilon_of(spends(parts), 1e-5), min(bounds)
    # Where epsilon is small, our grid is coarser than theirs, and the bound a little larger.
    is_small = theirs < 0.5
    assert found <= theirs * (1.005 if is_small else 1 + 1e-7)
    if all(rate < 1 for _, rate, _ in parts):
        assert found == pytest.approx(theirs, rel=5e-3 if is_small else 1e-3)


def test_the_deviation_of_the_mean_score_is_that_of_many_draws() -> None:
    plan, labels, patients = calibrate(PrivacyConfig(epsilon=3), 4, 2), 3, (2, 5)
    assert plan.validation is not None
    width = plan.validation.noise_multiplier * math.sqrt(labels) / 2
    noise = np.random.default_rng(0).normal(scale=width, size=(100_000, len(patients), labels))
    means = (noise / np.array(patients)[:, None]).mean(axis=2).mean(axis=1)
    assert means.std() == pytest.approx(plan.score_deviation(patients), rel=0.02)
    assert calibrate(PrivacyConfig(epsilon=3, validation="off"), 4, 2).score_deviation(patients) == 0
    assert plan.score_deviation([]) == 0


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-12])
def test_the_least_epsilon_is_what_opacus_states_for_no_loss_at_all(delta: float) -> None:
    stated = RDPAccountant()
    stated.history = [(1e9, 1e-9, 1)]
    assert least_epsilon(delta) == pytest.approx(max(0, stated.get_epsilon(delta, [1024.0])), rel=1e-6, abs=1e-12)


def test_an_epsilon_that_no_noise_reaches_is_refused_with_the_least_that_can_be_had() -> None:
    with pytest.raises(ConfigError, match=r"^privacy\.epsilon: 0\.001 is out of reach at .*at least 0\.008$"):
        noise_for(1e-3, 1e-5, 0.1, 600)
    check_epsilon(0.008, 1e-5)


def test_a_tiny_epsilon_is_kept_to() -> None:
    noise = noise_for(0.02, 1e-5, 0.1, 100)
    spent = epsilon_of([Spend("training", noise, 0.1, 100)], 1e-5)
    assert 0.015 < spent <= 0.02
    # The bound holds by an accountant of its own as well.
    other = PLDAccountant()
    other.compose(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(noise)), 100)
    assert other.get_epsilon(1e-5) <= 0.0201
