"""Forecast what a privacy budget allows, without training: noise, epsilon and signal-to-noise ratio.

**The ratio.** In each step a site sums its sampled patients' gradients, each clipped to ``max_grad_norm`` C, adds
Gaussian noise and divides by the expected number of patients q n (Abadi et al. 2016). The signal is the mean of the
clipped gradients; its norm is at most C. The noise has standard deviation m C in each of the d trained parameters,
where m is the noise multiplier, and hence a norm of about m C sqrt(d) / (q n). The server averages the sites, weighted
by their n patients, or as ``strategy.weights`` says. Over T steps, S sites and N patients in total, the signal grows
coherently to at most T C and the noise with the square root of T. Hence, with patients as weights,

    signal / noise <= sqrt(T) q N / (m sqrt(d S)).

Clipping norm and learning rate cancel out. This is an upper bound: the gradients of different patients and steps never
align completely, and a gradient shorter than C carries less signal. The ratio ranks settings that train the same
weights from the same start. The threshold between drowned and useful runs is empirical. It is lower for a run that
starts from a model (``DROWNED_FROM_MODEL``): its gradients align better, and most of the noise falls into directions
that change little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, Self

from common.config.federation import FederationConfig
from common.config.privacy import PrivacyConfig
from common.errors import ConfigError
from common.plan.plan import Plan
from common.plan.privacy import Spend
from common.privacy.accounting import epsilon_of
from common.privacy.calibration import calibrate
from common.privacy.renyi import epsilon_at, renyi_curve
from server.site_weights import site_weights

# Thresholds of the signal-to-noise ratio, from a few runs of a small network (deploy/docs/privacy.md). They are
# provisional and may not hold for other data. A ratio of 3.6 was ample for a model pretrained on similar scans; a ratio
# of 13 took a randomly initialised network half of the way. Federations that started from a model pretrained on such
# shapes gained 0.05 Dice at a ratio of 0.14 (nothing with one seed) and 0.16 at 0.34.
DROWNED_FROM_MODEL = 0.1
DROWNED_FROM_NOTHING = 1.0
PROMISING_FROM_MODEL = 3.0
PROMISING_FROM_NOTHING = 20.0

SAMPLE_RATES = (0.05, 0.1, 0.2, 0.5, 1.0)
STEP_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)

Verdict = Literal["drowned", "doubtful", "promising"]


@dataclass(frozen=True)
class Setting:
    """One choice of sample rate and steps within the budget.

    Attributes
    ----------
    steps
        Steps of each site over the whole federation.
    signal_to_noise
        Upper bound for the sum of all averaged updates.
    gradients
        Per-patient gradients computed by all sites together: the cost of training.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    signal_to_noise: float
    gradients: int


@dataclass(frozen=True)
class PrivacyForecast:
    """Forecast of a federation's privacy and signal.

    Attributes
    ----------
    patients
        Training patients by site.
    expected_batch
        Expected number of patients in a step, by site.
    planned
        The federation file's own setting, with its noise by PRV accounting.
    share_of_enough
        The planned ratio divided by the threshold of a promising run. It makes federations that start from a model
        and from random weights comparable.
    from_model
        Whether training starts from a model rather than from random weights.
    epsilon, epsilon_rdp
        Epsilon of the whole federation by PRV accounting, and by Rényi accounting as a cross-check.
    step_signal_to_noise
        Upper bound for one averaged step.
    validation_noise
        Noise multiplier of the validation scores; None if no scores leave the sites.
    alternatives
        Settings by sample rate, then steps. Their noise is by Rényi accounting, a few per cent higher than by PRV.
    best
        The best of the alternatives.
    best_affordable
        The best of the alternatives that cost no more gradients than the file's setting.
    """

    patients: Mapping[str, int]
    expected_batch: Mapping[str, float]
    parameters: int
    trained_parameters: int
    delta: float
    max_grad_norm: float
    rounds: int
    planned: Setting
    epsilon: float
    epsilon_rdp: float
    step_signal_to_noise: float
    validation_noise: float | None
    verdict: Verdict
    share_of_enough: float
    from_model: bool
    alternatives: tuple[Setting, ...]
    best: Setting
    best_affordable: Setting

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"patients": dict(self.patients), "alternatives": [asdict(s) for s in self.alternatives]}


def signal_to_noise(
    patients: Sequence[int],
    sample_rate: float,
    noise_multiplier: float,
    steps: int,
    parameters: int,
    weights: Sequence[float] | None = None,
) -> float:
    """Return an upper bound on the ratio of signal norm to noise norm in the averaged update of ``steps`` steps.

    Parameters
    ----------
    patients
        Number of patients of each site.
    sample_rate
        Probability with which a patient takes part in a step.
    noise_multiplier
        Standard deviation of the noise on a sum of gradients, in units of the clipping norm.
    steps
        Steps of each site.
    parameters
        Number of trained parameters.
    weights
        Weight of each site's update; by default its patients.
    """
    weights = patients if weights is None else weights
    total = sum(weights)
    # Per site: weight w/W times noise m sqrt(d)/(q n). The sites' noise is independent, so the squares add up.
    noise = math.sqrt(
        sum(
            (weight / total * noise_multiplier * math.sqrt(parameters) / (sample_rate * n)) ** 2
            for weight, n in zip(weights, patients, strict=True)
        )
    )
    return steps / (math.sqrt(steps) * noise)


def forecast_privacy(
    config: FederationConfig,
    patients: Mapping[str, int],
    parameters: int,
    trained_parameters: int,
    progress: Callable[[int, int], None] | None = None,
) -> PrivacyForecast:
    """Forecast what the privacy budget of a federation allows.

    Parameters
    ----------
    config
        Federation with a ``privacy`` section.
    patients
        Training patients by site.
    parameters, trained_parameters
        Number of the network's parameters, and of those that are trained.
    progress
        Called with the number of settings calculated so far and their total.

    Raises
    ------
    ConfigError
        If the federation is not differentially private.
    """
    if config.privacy is None:
        raise ConfigError("privacy: is missing; add privacy: {epsilon: 8, delta: 1.0e-5} to the federation file")
    privacy = config.privacy
    sites = _Sites.of(config, patients)
    steps = config.rounds * config.training.local_steps
    plan = calibrate(privacy, config.rounds, config.training.local_steps)
    whole = [Spend("training", plan.training.noise_multiplier, privacy.sample_rate, steps)]
    planned = _setting(sites, privacy.sample_rate, plan.training.noise_multiplier, steps, trained_parameters)
    alternatives = tuple(_alternatives(privacy, sites, steps, trained_parameters, progress))
    affordable = [setting for setting in alternatives if setting.gradients <= planned.gradients]
    return PrivacyForecast(
        patients=dict(patients),
        expected_batch={name: privacy.sample_rate * count for name, count in patients.items()},
        parameters=parameters,
        trained_parameters=trained_parameters,
        delta=privacy.delta,
        max_grad_norm=privacy.max_grad_norm,
        rounds=config.rounds,
        planned=planned,
        epsilon=epsilon_of(whole, privacy.delta),
        epsilon_rdp=epsilon_of(whole, privacy.delta, "rdp"),
        step_signal_to_noise=planned.signal_to_noise / math.sqrt(steps),
        validation_noise=plan.validation.noise_multiplier if plan.validation else None,
        verdict=verdict_of(planned.signal_to_noise, config.initial_model is not None),
        share_of_enough=planned.signal_to_noise / promising_from(config.initial_model is not None),
        from_model=config.initial_model is not None,
        alternatives=alternatives,
        best=_best(alternatives),
        best_affordable=_best(affordable or [planned]),
    )


def privacy_summary(
    config: FederationConfig, plan: Plan, patients: Sequence[int] | None = None, trained_parameters: int = 0
) -> dict[str, Any] | None:
    """Return the noise of a federation and, if its patients are known, its verdict, for ``summary.json``.

    Parameters
    ----------
    config
        The federation.
    plan
        Its plan.
    patients
        Training patients of each site; None if unknown.
    trained_parameters
        Number of the network's trained parameters.

    Returns
    -------
    dict[str, Any] | None
        JSON values; None if the federation is not private.
    """
    if config.privacy is None or plan.privacy is None:
        return None
    noise = plan.privacy.training.noise_multiplier
    found: dict[str, Any] = {
        "training_noise": noise,
        "validation_noise": plan.privacy.validation.noise_multiplier if plan.privacy.validation else None,
    }
    if patients is not None:
        steps = config.rounds * config.training.local_steps
        sites = _Sites.of(config, {str(index): count for index, count in enumerate(patients)})
        ratio = sites.signal_to_noise(config.privacy.sample_rate, noise, steps, trained_parameters)
        from_model = config.initial_model is not None
        found |= {
            "signal_to_noise": ratio,
            "share_of_enough": ratio / promising_from(from_model),
            "verdict": verdict_of(ratio, from_model),
        }
    return found


def verdict_of(ratio: float, from_model: bool) -> Verdict:
    """Judge a signal-to-noise ratio, for a federation that starts from a model or from random weights."""
    if ratio < drowned_below(from_model):
        return "drowned"
    return "promising" if ratio >= promising_from(from_model) else "doubtful"


def drowned_below(from_model: bool) -> float:
    """Return the ratio below which the noise drowns the signal."""
    return DROWNED_FROM_MODEL if from_model else DROWNED_FROM_NOTHING


def promising_from(from_model: bool) -> float:
    """Return the ratio from which a federation is worth trying."""
    return PROMISING_FROM_MODEL if from_model else PROMISING_FROM_NOTHING


@dataclass(frozen=True)
class _Sites:
    """The patients of each site, and how much its update counts."""

    patients: Sequence[int]
    weights: Sequence[float]

    @classmethod
    def of(cls, config: FederationConfig, patients: Mapping[str, int]) -> Self:
        """Weigh sites as the federation does; numbers by name say nothing about sites that have no name yet."""
        rule = config.strategy.weights
        named = isinstance(rule, str) or set(patients) <= set(rule)
        return cls(list(patients.values()), list(site_weights(rule if named else "capped:2", patients).values()))

    def signal_to_noise(self, rate: float, multiplier: float, steps: int, parameters: int) -> float:
        """Return ``signal_to_noise`` of these sites."""
        return signal_to_noise(self.patients, rate, multiplier, steps, parameters, self.weights)


def _setting(sites: _Sites, rate: float, multiplier: float, steps: int, parameters: int) -> Setting:
    ratio = sites.signal_to_noise(rate, multiplier, steps, parameters)
    return Setting(rate, steps, multiplier, ratio, round(rate * sum(sites.patients) * steps))


def _best(settings: Sequence[Setting]) -> Setting:
    """Among settings within 2 % of the highest ratio, choose the one with the most steps, then the cheapest.

    In all measurements more steps reached a higher Dice at the same ratio (``deploy/docs/privacy.md``).
    """
    highest = max(setting.signal_to_noise for setting in settings)
    near = [setting for setting in settings if setting.signal_to_noise >= 0.98 * highest]
    return max(near, key=lambda setting: (setting.steps, -setting.gradients))


def _alternatives(
    privacy: PrivacyConfig,
    sites: _Sites,
    steps: int,
    parameters: int,
    progress: Callable[[int, int], None] | None,
) -> list[Setting]:
    rates = sorted({*SAMPLE_RATES, privacy.sample_rate})
    counts = sorted({max(1, round(factor * steps)) for factor in STEP_FACTORS})
    settings = []
    for rate in rates:
        for count in counts:
            multiplier = renyi_noise(privacy.epsilon, privacy.delta, rate, count)
            settings.append(_setting(sites, rate, multiplier, count, parameters))
            if progress is not None:
                progress(len(settings), len(rates) * len(counts))
    return settings


@lru_cache(maxsize=512)
def renyi_noise(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the noise multiplier, to 0.5 %, at which ``steps`` steps spend ``epsilon`` by Rényi accounting.

    It is an upper bound on the multiplier of ``common.privacy.calibration.noise_for``, and faster.
    """

    def spent(multiplier: float) -> float:
        return epsilon_at(steps * renyi_curve(multiplier, sample_rate), delta)

    low, high = 0.1, 1.0
    while spent(high) > epsilon:
        low, high = high, 2 * high
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high
