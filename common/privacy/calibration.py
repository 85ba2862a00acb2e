"""The noise that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.config.privacy import AdaptiveClipping, PrivacyConfig
from common.errors import ConfigError
from common.privacy.accounting import Accountant, Spend, epsilon_of

NOISE_TOLERANCE = 1.001
"""The noise found for an epsilon is at most so many times what it would have to be."""


@dataclass(frozen=True)
class PrivacyPlan:
    """The noise of a whole federation, the same at every site.

    Attributes
    ----------
    training, validation
        what one round costs the patients of either kind; ``validation`` is None if no score leaves.
    """

    training: Spend
    validation: Spend | None


def plan_privacy(config: PrivacyConfig, rounds: int, local_steps: int) -> PrivacyPlan:
    """Calibrates the noise once for the whole federation: ``rounds`` x ``local_steps`` steps.

    A patient is either trained on or validated on, so either kind may spend the whole budget. Models are scored
    ``rounds`` + 1 times.

    Raises
    ------
    ConfigError
        adaptive clipping would cost more than the budget.
    """
    multiplier = noise_for(config.epsilon, config.delta, config.sample_rate, rounds * local_steps)
    gradient_noise(multiplier, config.adaptive_clipping)
    training = Spend("training", multiplier, config.sample_rate, local_steps)
    if config.validation == "off":
        return PrivacyPlan(training, None)
    return PrivacyPlan(training, Spend("validation", noise_for(config.epsilon, config.delta, 1.0, rounds + 1), 1.0, 1))


def score_deviation(plan: PrivacyPlan, patients: Sequence[int]) -> float:
    """Standard deviation of the noise in the mean over sites of their mean Dice over labels; 0 if no score leaves.

    A site's sum over its patients has noise of ``noise_multiplier`` times the root of the number of labels, halved, on
    every label (``client.training.dp_trainer``); the mean over labels takes that root away again.

    Parameters
    ----------
    plan
        of the federation.
    patients
        that each site validates on, of the sites that sent a score.
    """
    if plan.validation is None or not patients:
        return 0.0
    squares = sum((plan.validation.noise_multiplier / (2 * count)) ** 2 for count in patients)
    return math.sqrt(squares) / len(patients)


@lru_cache(maxsize=128)
def noise_for(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier, to 0.1 %, with which ``steps`` steps stay within ``epsilon`` at ``delta``."""

    def spent(multiplier: float, accountant: Accountant = "prv") -> float:
        return epsilon_of([Spend("training", multiplier, sample_rate, steps)], delta, accountant)

    # Rényi accounting is quick, and what it finds is a little too much noise: the place to begin.
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
    """The upper end of an interval around the noise that spends ``epsilon``, no wider than ``NOISE_TOLERANCE``."""
    step = NOISE_TOLERANCE**0.4
    while (width := math.log(high / low)) > math.log(NOISE_TOLERANCE):
        above, below = math.log(spent(low) / epsilon), math.log(max(spent(high), 1e-300) / epsilon)
        crossing = low * math.exp(width * above / (above - below))
        for guess in (crossing * step, crossing / step, math.sqrt(low * high)):
            # The middle is asked for only where the curve is too bent for the other two.
            if low < guess < high and math.log(high / low) > width / 2:
                low, high = (low, guess) if spent(guess) <= epsilon else (guess, high)
    return high


def gradient_noise(noise_multiplier: float, adaptive: AdaptiveClipping | None) -> float:
    """The noise on the gradients, in units of the clipping norm, of a step that costs ``noise_multiplier`` in all.

    With adaptive clipping a step also tells the noised number of unclipped patients, less one half for each patient:
    one patient changes it by one half. Both together cost what one mechanism of noise z does if the gradients' is
    (z**-2 - (2 count_noise)**-2)**(-1/2) (Andrew et al. 2021, theorem 1).

    Raises
    ------
    ConfigError
        the count alone would cost more than the step may.
    """
    if adaptive is None:
        return noise_multiplier
    if 2 * adaptive.count_noise <= noise_multiplier:
        raise ConfigError(
            f"privacy.adaptive_clipping.count_noise: must be more than {noise_multiplier / 2:.3g} here, or counting "
            "alone costs the whole budget; 10 times as much leaves nearly all of it for training"
        )
    return float((noise_multiplier**-2 - (2 * adaptive.count_noise) ** -2) ** -0.5)
