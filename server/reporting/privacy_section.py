"""The report's section on differential privacy: the guarantee, the privacy spent, and the trade-off with Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from common.config.privacy import delta_warning
from common.formatting import counted
from server.privacy.forecast_text import verdict_text
from server.reporting.figures import MEAN_STYLE, Curve, Panel, draw_panels, site_style
from server.run_store.record import RunRecord, SiteRound, as_number


def privacy_section(run: RunRecord) -> dict[str, Any] | None:
    """Return the section's facts and figure, or None for a run without differential privacy."""
    privacy = run.configuration.get("privacy")
    if not isinstance(privacy, Mapping):
        return None
    noise = run.summary.get("privacy")
    noise = noise if isinstance(noise, Mapping) else {}
    epsilon, delta = as_number(privacy.get("epsilon")), as_number(privacy.get("delta"))
    spent = run.epsilon_spent()
    facts = [
        ("Protected", "each patient of each site, with all scans that the site assigns to them"),
        ("Budget", f"epsilon {_plain(epsilon)} at delta {_plain(delta)}, for {_rounds(run)}"),
        ("Spent so far", f"epsilon {spent:.3f} (the site that spent the most)" if spent is not None else "nothing yet"),
        (
            "Training",
            f"each patient takes part in a step with probability {_plain(as_number(privacy.get('sample_rate')))}; "
            f"their gradient is clipped to a norm of {_plain(as_number(privacy.get('max_grad_norm')))}"
            + (", which adapts to a noisy quantile of the gradient norms" if privacy.get("adaptive_clipping") else ""),
        ),
        ("Noise multiplier", _noise_text(as_number(noise.get("training_noise")), "the sum of gradients in a step")),
        ("Validation scores", _validation_text(privacy, as_number(noise.get("validation_noise")))),
    ]
    most = max((part.examples or 0 for line in run.rounds for part in line.sites.values()), default=0)
    if delta is not None and (warning := delta_warning(delta, most)):
        facts.append(("Warning", warning))
    if expected := verdict_text(noise):
        facts.append(("Expected", f"{expected[0].upper()}{expected[1:]}"))
    return {
        "facts": facts,
        "epsilon": _plain(epsilon),
        "delta": _plain(delta),
        "factor": f"{math.exp(epsilon):,.3g}" if epsilon is not None and epsilon < 20 else "a very large number",
        "curves": _curves(run),
        "shows_patients": bool(run.cases or run.examples),
    }


def _rounds(run: RunRecord) -> str:
    return "all rounds" if run.rounds_planned is None else f"all {counted(run.rounds_planned, 'round')}"


def _plain(value: float | None) -> str:
    return "(not known)" if value is None else f"{value:g}"


def _noise_text(multiplier: float | None, what: str) -> str:
    if multiplier is None:
        return "not known yet"
    unit = "relative to one patient's largest contribution"
    return f"{multiplier:.3f} (standard deviation of the noise on {what}, {unit})"


def _validation_text(privacy: Mapping[str, Any], multiplier: float | None) -> str:
    if privacy.get("validation") == "off":
        return "none leave the sites"
    noise = _noise_text(multiplier, "the sum of scores")
    return f"means over a site's validation patients, with noise multiplier {noise}"


def _curves(run: RunRecord) -> str | None:
    """Draw epsilon over rounds, and Dice against epsilon."""
    if run.epsilon_spent() is None:
        return None
    rounds = run.training_rounds
    spending = [
        Curve(
            [line.number for line in rounds],
            [_number(None if (part := line.sites.get(site.name)) is None else part.epsilon) for line in rounds],
            site_style(index),
        )
        for index, site in enumerate(run.sites)
    ]
    panels = [Panel("Epsilon spent", "round", "epsilon", spending)]
    trade = _dice_by_epsilon(run)
    if any(math.isfinite(value) for curve in trade for value in curve.y):
        panels.append(
            Panel("Dice against epsilon", "epsilon spent on the model", "mean Dice", trade, (0.0, 1.0), whole_x=False)
        )
    return draw_panels(panels, "privacy", "Curves of epsilon over rounds, and of validation Dice against epsilon")


def _dice_by_epsilon(run: RunRecord) -> list[Curve]:
    """Plot each model's Dice against the epsilon spent by the end of its round; the initial model spent nothing."""
    by_number = {line.number: line for line in run.rounds}

    def spent(model_round: int, site: str) -> float:
        line = by_number.get(model_round)
        if line is None:
            return 0.0 if model_round == 0 else math.nan
        part = line.sites.get(site)
        return _number(None if part is None else part.epsilon)

    curves = []
    for index, site in enumerate(run.sites):
        x = [spent(line.model_round, site.name) for line in run.rounds]
        y = [_score(line.sites.get(site.name)) for line in run.rounds]
        curves.append(Curve(x, y, site_style(index)))
    largest = [
        max(
            (value for site in run.sites if math.isfinite(value := spent(line.model_round, site.name))),
            default=math.nan,
        )
        for line in run.rounds
    ]
    return [*curves, Curve(largest, [_number(line.mean_dice) for line in run.rounds], MEAN_STYLE)]


def _score(part: SiteRound | None) -> float:
    return _number(None if part is None else part.mean_dice)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
