"""Calibration of the noise to a privacy budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from common.config.privacy import AdaptiveClipping, PrivacyConfig
from common.errors import ConfigError
from common.plan.privacy import PrivacyPlan, Spend
from common.privacy.accounting import Accountant, epsilon_of, least_epsilon

NOISE_TOLERANCE = 1.001
"""Largest ratio of the calibrated noise to the smallest noise that meets the budget."""


def check_epsilon(epsilon: float, delta: float) -> None:
    """Check that an epsilon is not so small that no noise reaches it.

    Raises
    ------
    ConfigError
        Names the smallest epsilon that a file may ask for.
    """
    least = 2 * least_epsilon(delta)
    if epsilon < least:
        raise ConfigError(
            f"privacy.epsilon: {epsilon:g} is out of reach at delta {delta:g}, however large the noise; write at least "
            f"{math.ceil(1000 * least) / 1000:g}"
        )


def calibrate(config: PrivacyConfig, rounds: int, local_steps: int) -> PrivacyPlan:
    """Calibrate the noise once for the whole federation: ``rounds`` x ``local_steps`` steps.

    Training and validation patients are disjoint, so each group may spend the whole budget. Models are scored
    ``rounds`` + 1 times.

    Raises
    ------
    ConfigError
        If adaptive clipping would exceed the budget.
    """
    multiplier = noise_for(config.epsilon, config.delta, config.sample_rate, rounds * local_steps)
    gradient_noise(multiplier, config.adaptive_clipping)
    training = Spend("training", multiplier, config.sample_rate, local_steps)
    if config.validation == "off":
        return PrivacyPlan(training=training)
    noise = noise_for(config.epsilon, config.delta, 1.0, rounds + 1)
    return PrivacyPlan(training=training, validation=Spend("validation", noise, 1.0, 1))


def check_calibration(plan: PrivacyPlan, config: PrivacyConfig, rounds: int, local_steps: int) -> None:
    """Check that a plan made elsewhere keeps to the federation file.

    This needs one evaluation of the accountant per spend; calibration needs many.

    Raises
    ------
    ConfigError
        If the plan's steps or sample rates differ from the file's, or it exceeds the budget.
    """
    expected = {"training": (config.sample_rate, local_steps)}
    if config.validation != "off":
        expected["validation"] = (1.0, 1)
    parts = [plan.training, *([plan.validation] if plan.validation else [])]
    if {part.purpose: (part.sample_rate, part.steps) for part in parts} != expected or len(parts) != len(expected):
        raise ConfigError("privacy: steps and sample rates of the plan are not those of the federation file")
    for spend in plan.costs(rounds, rounds + 1):
        spent = epsilon_of([spend], config.delta)
        if spent > config.epsilon:
            raise ConfigError(
                f"privacy: the plan's {spend.purpose} noise {spend.noise_multiplier:.4g} spends epsilon {spent:.4g}, "
                f"more than the budget of {config.epsilon:g}"
            )
    gradient_noise(plan.training.noise_multiplier, config.adaptive_clipping)


@lru_cache(maxsize=128)
def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Find the smallest noise multiplier, to 0.1 %, that keeps ``steps`` steps within ``epsilon`` at ``delta``.

    Raises
    ------
    ConfigError
        See ``check_epsilon``.
    """
    if sample_rate < 1:
        check_epsilon(epsilon, delta)

    def spent(multiplier: float, accountant: Accountant = "prv") -> float:
        return epsilon_of([Spend("training", multiplier, sample_rate, steps)], delta, accountant)

    # Rényi accounting is fast and slightly overestimates the noise: a good starting point.
    coarse: Accountant = "prv" if sample_rate == 1 else "rdp"
    high = 1.0
    while spent(high, coarse) > epsilon:
        high *= 2
    low = high
    while spent(low, coarse) <= epsilon:
        low /= 2
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle, coarse) <= epsilon else (middle, high)
    low = high / 1.05
    while spent(low) <= epsilon:
        low, high = low / 1.05, low
    return _narrowed(spent, epsilon, low, high)


def _narrowed(spent: Callable[[float], float], epsilon: float, low: float, high: float) -> float:
    """Narrow the interval around the noise that spends ``epsilon`` to ``NOISE_TOLERANCE``; return its upper end."""
    step = NOISE_TOLERANCE**0.4
    while (width := math.log(high / low)) > math.log(NOISE_TOLERANCE):
        above, below = math.log(spent(low) / epsilon), math.log(max(spent(high), 1e-300) / epsilon)
        crossing = low * math.exp(width * above / (above - below))
        for guess in (crossing * step, crossing / step, math.sqrt(low * high)):
            # The midpoint is evaluated only if the curve is too bent for the other two guesses.
            if low < guess < high and math.log(high / low) > width / 2:
                low, high = (low, guess) if spent(guess) <= epsilon else (guess, high)
    return high


def gradient_noise(noise_multiplier: float, adaptive: AdaptiveClipping | None) -> float:
    """Return the gradient noise, in units of the clipping norm, of a step with ``noise_multiplier`` in total.

    With adaptive clipping a step also releases the noised number of unclipped patients minus one half per patient, so
    one patient changes it by one half. Both releases together cost as much as one mechanism with noise z if the
    gradient noise is (z**-2 - (2 count_noise)**-2)**(-1/2) (Andrew et al. 2021, theorem 1).

    Raises
    ------
    ConfigError
        If the count alone would exceed the cost of a step.
    """
    if adaptive is None:
        return noise_multiplier
    if 2 * adaptive.count_noise <= noise_multiplier:
        raise ConfigError(
            f"privacy.adaptive_clipping.count_noise: must be more than {noise_multiplier / 2:.3g} here, or counting "
            "alone costs the whole budget; 10 times as much leaves nearly all of it for training"
        )
    return float((noise_multiplier**-2 - (2 * adaptive.count_noise) ** -2) ** -0.5)
