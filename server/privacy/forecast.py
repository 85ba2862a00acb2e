"""What a privacy budget means for a federation, worked out without training: noise, epsilon, signal-to-noise.

**The ratio.** In a step a site adds up its sampled patients' gradients, each clipped to ``max_grad_norm`` C, adds
Gaussian noise and divides by the expected number of patients q n (Abadi et al. 2016). The mean of the clipped
gradients, the signal, has a norm of at most C. The noise has m C in each of the d trained parameters, m being the noise
multiplier, so a norm of m C sqrt(d) / (q n). The server averages the sites weighted by their n patients. Over T steps
and S sites with N patients together the signal adds up coherently to at most T C, the noise as a square root, so that

    signal / noise <= sqrt(T) q N / (m sqrt(d S)).

Clipping norm and learning rate cancel out. It is an upper bound: gradients of patients and steps never agree
completely, and a gradient that is shorter than C carries less. It ranks settings that train the same weights from the
same start; where the line between drowned and useful runs is a matter of measurement, and lies lower for a start from a
model (``DROWNED_FROM_MODEL`` and so on): there the gradients agree, and most of the noise falls into directions that
change little.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from common.config.federation import FederationConfig
from common.config.privacy import PrivacyConfig
from common.errors import ConfigError
from common.formatting import counted
from common.privacy.accounting import Spend, epsilon_of
from common.privacy.calibration import plan_privacy
from server.formatting import NOTHING

# Bounds on the signal-to-noise ratio, from a handful of runs of a small network (deploy/docs/privacy.md); provisional,
# and no promise for other data. A ratio of 3.6 was plenty for a model that was trained on similar scans before, and one
# of 13 brought a network that knew nothing half of the way. From a model that knew such shapes, federations
# gained 0.05 of Dice at 0.14, with one seed nothing, and 0.16 at 0.34.
DROWNED_FROM_MODEL = 0.1
DROWNED_FROM_NOTHING = 1.0
PROMISING_FROM_MODEL = 3.0
PROMISING_FROM_NOTHING = 20.0

SAMPLE_RATES = (0.05, 0.1, 0.2, 0.5, 1.0)
STEP_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Enough of them for a bound within a percent at any epsilon that a federation file may ask for.
_ORDERS = [
    *(1 + step / 4 for step in range(1, 40)),
    12.0,
    14.0,
    16.0,
    20.0,
    24.0,
    32.0,
    48.0,
    64.0,
    128.0,
    256.0,
    512.0,
]

Verdict = Literal["drowned", "doubtful", "promising"]
_WORDS: dict[Verdict, str] = {
    "drowned": "the noise drowns the signal: do not expect this federation to learn anything",
    "doubtful": "doubtful: the noise slows learning down, or stops it; try it in a simulation first",
    "promising": "worth trying: the signal outweighs the noise",
}


@dataclass(frozen=True)
class Setting:
    """One choice of sample rate and steps within the budget.

    Attributes
    ----------
    steps
        of every site over the whole federation.
    signal_to_noise
        upper bound, of the sum of all averaged updates.
    gradients
        patients' gradients that all sites compute together, which is what training costs.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float
    signal_to_noise: float
    gradients: int


@dataclass(frozen=True)
class PrivacyForecast:
    """What is to be expected of a federation.

    Attributes
    ----------
    patients
        site -> patients that it trains on.
    expected_batch
        site -> patients in a step, on average.
    planned
        the federation file's own setting, with its noise by PRV accounting.
    share_of_enough
        the planned ratio over that from which such a start is worth trying: what federations that start from different
        things are to be compared by.
    from_model
        whether it starts from a model or from nothing.
    epsilon, epsilon_rdp
        of the whole federation by PRV accounting, and by Rényi accounting as a cross-check.
    step_signal_to_noise
        of one averaged step.
    validation_noise
        multiplier of the noise on the validation scores; None if none leave the sites.
    alternatives
        by sample rate, then steps; their noise is by Rényi accounting, a few per cent more than by PRV.
    best
        of the alternatives.
    best_affordable
        of those that cost no more gradients than the file's setting.
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
        """Plain values, for JSON."""
        return asdict(self) | {"patients": dict(self.patients), "alternatives": [asdict(s) for s in self.alternatives]}


def signal_to_noise(
    patients: Sequence[int], sample_rate: float, noise_multiplier: float, steps: int, parameters: int
) -> float:
    """Upper bound on the ratio of the norms of signal and noise in the averaged update of ``steps`` steps.

    Parameters
    ----------
    patients
        of each site; the update of each is weighted by them.
    sample_rate
        probability with which a patient takes part in a step.
    noise_multiplier
        standard deviation of the noise on a sum of gradients, in units of the clipping norm.
    steps
        of every site.
    parameters
        that are trained.
    """
    everybody = sum(patients)
    # Per site: weight n/N times noise m sqrt(d)/(q n); independent, so their squares add up.
    noise = math.sqrt(
        sum((n / everybody * noise_multiplier * math.sqrt(parameters) / (sample_rate * n)) ** 2 for n in patients)
    )
    return steps / (math.sqrt(steps) * noise)


def forecast_privacy(
    config: FederationConfig,
    patients: Mapping[str, int],
    parameters: int,
    trained_parameters: int,
    progress: Callable[[int, int], None] | None = None,
) -> PrivacyForecast:
    """Works out what the budget of a federation allows.

    Parameters
    ----------
    config
        with a ``privacy`` section.
    patients
        site -> patients that it trains on.
    parameters, trained_parameters
        of the network, all and those that are trained.
    progress
        is told how many of how many settings are calculated.

    Raises
    ------
    ConfigError
        the federation is not differentially private.
    """
    if config.privacy is None:
        raise ConfigError("privacy: is missing; add privacy: {epsilon: 8, delta: 1.0e-5} to the federation file")
    with warnings.catch_warnings():
        # Of the accountants, about orders and tails that their bounds do not rest on.
        warnings.simplefilter("ignore")
        return _forecast(config, config.privacy, patients, parameters, trained_parameters, progress)


def _forecast(
    config: FederationConfig,
    privacy: PrivacyConfig,
    patients: Mapping[str, int],
    parameters: int,
    trained_parameters: int,
    progress: Callable[[int, int], None] | None,
) -> PrivacyForecast:
    counts = list(patients.values())
    steps = config.rounds * config.training.local_steps
    plan = plan_privacy(privacy, config.rounds, config.training.local_steps)
    whole = [Spend("training", plan.training.noise_multiplier, privacy.sample_rate, steps)]
    planned = _setting(counts, privacy.sample_rate, plan.training.noise_multiplier, steps, trained_parameters)
    alternatives = tuple(_alternatives(privacy, counts, steps, trained_parameters, progress))
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
        share_of_enough=planned.signal_to_noise / _enough(config.initial_model is not None),
        from_model=config.initial_model is not None,
        alternatives=alternatives,
        best=_best(alternatives),
        best_affordable=_best(affordable or [planned]),
    )


def privacy_summary(
    config: FederationConfig, patients: Sequence[int] | None = None, trained_parameters: int = 0
) -> dict[str, Any] | None:
    """The noise of a federation and, where its patients are known, what is expected of it, for ``summary.json``.

    Parameters
    ----------
    config
        the federation.
    patients
        of each site, that it trains on; None if that is not known here.
    trained_parameters
        of the network.

    Returns
    -------
    dict[str, Any] | None
        None if the federation is not private.
    """
    if config.privacy is None:
        return None
    plan = plan_privacy(config.privacy, config.rounds, config.training.local_steps)
    noise = plan.training.noise_multiplier
    found: dict[str, Any] = {
        "training_noise": noise,
        "validation_noise": plan.validation.noise_multiplier if plan.validation else None,
    }
    if patients is not None:
        steps = config.rounds * config.training.local_steps
        ratio = signal_to_noise(patients, config.privacy.sample_rate, noise, steps, trained_parameters)
        from_model = config.initial_model is not None
        found |= {
            "signal_to_noise": ratio,
            "share_of_enough": ratio / _enough(from_model),
            "verdict": verdict_of(ratio, from_model),
        }
    return found


def verdict_text(summary: Mapping[str, Any]) -> str | None:
    """What ``privacy_summary`` expects, in a sentence; None if it does not say."""
    words = _WORDS.get(summary.get("verdict"))  # type: ignore[arg-type]
    if words is None:
        return None
    return f"{words} (signal-to-noise of the averaged update, over all steps: at most {summary['signal_to_noise']:.2f})"


def verdict_of(ratio: float, from_model: bool) -> Verdict:
    """What a signal-to-noise ratio promises for a federation that starts from a model, or from nothing."""
    if ratio < _drowned(from_model):
        return "drowned"
    return "promising" if ratio >= _enough(from_model) else "doubtful"


def _drowned(from_model: bool) -> float:
    return DROWNED_FROM_MODEL if from_model else DROWNED_FROM_NOTHING


def _enough(from_model: bool) -> float:
    return PROMISING_FROM_MODEL if from_model else PROMISING_FROM_NOTHING


def _setting(patients: Sequence[int], rate: float, multiplier: float, steps: int, parameters: int) -> Setting:
    ratio = signal_to_noise(patients, rate, multiplier, steps, parameters)
    return Setting(rate, steps, multiplier, ratio, round(rate * sum(patients) * steps))


def _best(settings: Sequence[Setting]) -> Setting:
    """The highest ratio; of those within 2 % of it, the most steps, and the cheapest that has as many.

    At one ratio more steps reached more, wherever it was measured (``deploy/docs/privacy.md``).
    """
    highest = max(setting.signal_to_noise for setting in settings)
    near = [setting for setting in settings if setting.signal_to_noise >= 0.98 * highest]
    return max(near, key=lambda setting: (setting.steps, -setting.gradients))


def _alternatives(
    privacy: PrivacyConfig,
    patients: Sequence[int],
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
            settings.append(_setting(patients, rate, multiplier, count, parameters))
            if progress is not None:
                progress(len(settings), len(rates) * len(counts))
    return settings


@lru_cache(maxsize=512)
def renyi_noise(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The noise multiplier, to 0.5 %, with which ``steps`` steps stay within ``epsilon``, by Rényi accounting.

    An upper bound on the multiplier of ``common.privacy.calibration.noise_for``, which takes seconds for every setting.
    """
    from opacus.accountants.analysis import rdp

    def spent(multiplier: float) -> float:
        curve = rdp.compute_rdp(q=sample_rate, noise_multiplier=multiplier, steps=steps, orders=_ORDERS)
        return float(rdp.get_privacy_spent(orders=_ORDERS, rdp=curve, delta=delta)[0])

    low, high = 0.1, 1.0
    while spent(high) > epsilon:
        low, high = high, 2 * high
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def describe(forecast: PrivacyForecast) -> str:
    """The forecast in words and tables, for a terminal."""
    planned = forecast.planned
    width = max(map(len, forecast.patients), default=4)
    lines = [
        f"budget            epsilon {forecast.epsilon:.2f} (PRV; by Rényi accounting {forecast.epsilon_rdp:.2f}) at "
        f"delta {forecast.delta:g} for every patient, over {counted(forecast.rounds, 'round')}, "
        f"{counted(planned.steps, 'step')}",
        f"noise multiplier  {planned.noise_multiplier:.3f} at sample rate {planned.sample_rate:g}, "
        f"clipping norm {forecast.max_grad_norm:g}",
        f"validation        {_validation_text(forecast.validation_noise)}",
        f"trained           {forecast.trained_parameters:,} of {forecast.parameters:,} parameters",
        f"{'site':<{width}}  patients  expected in a step",
    ]
    lines += [
        f"{name:<{width}}  {n:>8}  {forecast.expected_batch[name]:>18.1f}" for name, n in forecast.patients.items()
    ]
    lines += [
        "",
        f"signal-to-noise of the averaged update, at most: {forecast.step_signal_to_noise:.2f} in a step, "
        f"{planned.signal_to_noise:.2f} over all steps",
        *_table(forecast),
        "",
        f"best:               {_setting_text(forecast.best)}",
        f"best at this cost:  {_setting_text(forecast.best_affordable)}",
        f"verdict: {_WORDS[forecast.verdict]}",
        f"(start from {'a model' if forecast.from_model else 'nothing'}: below {_drowned(forecast.from_model):g} "
        f"drowned, from {_enough(forecast.from_model):g} worth trying. These lines were drawn after a few runs, and "
        "are no promise for other data)",
    ]
    return "\n".join(lines)


def _validation_text(multiplier: float | None) -> str:
    if multiplier is None:
        return "no scores leave the sites"
    return f"scores leave the sites with noise, multiplier {multiplier:.3f}"


def _setting_text(setting: Setting) -> str:
    return (
        f"sample rate {setting.sample_rate:g}, {counted(setting.steps, 'step')}: ratio {setting.signal_to_noise:.2f}, "
        f"{setting.gradients:,} patients' gradients"
    )


def _table(forecast: PrivacyForecast) -> list[str]:
    """Ratios by sample rate (rows) and steps (columns)."""
    rates = sorted({setting.sample_rate for setting in forecast.alternatives})
    counts = sorted({setting.steps for setting in forecast.alternatives})
    cells = {(setting.sample_rate, setting.steps): setting for setting in forecast.alternatives}
    lines = [
        "",
        "at most, by sample rate (rows) and steps of the whole federation (columns); * the file's own, + best",
        "(by Rényi accounting, which is quicker and a few per cent lower; of equal ratios more steps are better)",
    ]
    lines.append("rate   " + "".join(f"{count:>10}" for count in counts))
    for rate in rates:
        row = f"{rate:<7g}"
        for count in counts:
            setting = cells.get((rate, count))
            row += f"{NOTHING if setting is None else f'{setting.signal_to_noise:.2f}' + _mark(setting, forecast):>10}"
        lines.append(row.rstrip())
    return lines


def _mark(setting: Setting, forecast: PrivacyForecast) -> str:
    own = (setting.sample_rate, setting.steps) == (forecast.planned.sample_rate, forecast.planned.steps)
    return ("*" if own else "") + ("+" if setting == forecast.best else "")
