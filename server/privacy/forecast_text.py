"""The privacy forecast in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.config.privacy import delta_warning
from common.formatting import counted
from server.formatting import NOTHING
from server.privacy.forecast import PrivacyForecast, Setting, Verdict, drowned_below, promising_from

_WORDS: dict[Verdict, str] = {
    "drowned": "the noise drowns the signal: do not expect this federation to learn anything",
    "doubtful": "doubtful: the noise slows or stops learning; try it in a simulation first",
    "promising": "worth trying: the signal outweighs the noise",
}


def verdict_text(summary: Mapping[str, Any]) -> str | None:
    """Return the verdict of a ``privacy_summary`` as a sentence, or None if it has no verdict."""
    verdict: Any = summary.get("verdict")
    words = _WORDS.get(verdict)
    if words is None:
        return None
    ratio = summary["signal_to_noise"]
    return f"{words} (signal-to-noise ratio of the averaged update over all steps: at most {ratio:.2f})"


def describe(forecast: PrivacyForecast) -> str:
    """Format the forecast for a terminal."""
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
        "upper bound on the signal-to-noise ratio of the averaged update: "
        f"{forecast.step_signal_to_noise:.2f} in a step, {planned.signal_to_noise:.2f} over all steps",
        *_table(forecast),
        "",
        f"best:               {_setting_text(forecast.best)}",
        f"best at this cost:  {_setting_text(forecast.best_affordable)}",
        f"verdict: {_WORDS[forecast.verdict]}",
        *_warnings(forecast),
        f"(start from {'a model' if forecast.from_model else 'random weights'}: below "
        f"{drowned_below(forecast.from_model):g} drowned, from {promising_from(forecast.from_model):g} worth trying. "
        "These thresholds come from a few runs and may not hold for other data)",
    ]
    return "\n".join(lines)


def _warnings(forecast: PrivacyForecast) -> list[str]:
    warning = delta_warning(forecast.delta, max(forecast.patients.values(), default=0))
    return [] if warning is None else [f"WARNING: {warning}"]


def _validation_text(multiplier: float | None) -> str:
    if multiplier is None:
        return "no scores leave the sites"
    return f"scores leave the sites with noise, multiplier {multiplier:.3f}"


def _setting_text(setting: Setting) -> str:
    return (
        f"sample rate {setting.sample_rate:g}, {counted(setting.steps, 'step')}: ratio {setting.signal_to_noise:.2f}, "
        f"{counted(setting.gradients, 'gradient')} of patients"
    )


def _table(forecast: PrivacyForecast) -> list[str]:
    """Format the ratios by sample rate (rows) and steps (columns)."""
    rates = sorted({setting.sample_rate for setting in forecast.alternatives})
    counts = sorted({setting.steps for setting in forecast.alternatives})
    cells = {(setting.sample_rate, setting.steps): setting for setting in forecast.alternatives}
    lines = [
        "",
        "upper bounds by sample rate (rows) and steps of the whole federation (columns); * the file's own, + best",
        "(by Rényi accounting, which is faster and gives ratios a few per cent lower; at equal ratios more steps win)",
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
