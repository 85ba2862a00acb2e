"""The report's curves of Dice and loss over rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from server.reporting.figures import MEAN_STYLE, Curve, CurveStyle, Panel, draw_panels, site_style
from server.run_store.record import Round, RunRecord, SiteRound, as_number, as_scores

# More panels would be too small to read; the table of sites has every label.
MOST_LABEL_PANELS = 4


def learning_curves(run: RunRecord, best_round: int | None) -> str | None:
    """Draw the validation Dice of the model after each round."""
    if not any(line.mean_dice is not None or line.dice for line in run.rounds):
        return None
    pooled = run.summary.get("pooled")
    references = as_scores(pooled.get("dice")) if isinstance(pooled, dict) else {}
    reference = as_number(pooled.get("mean_dice")) if isinstance(pooled, dict) else None

    def panel(title: str, label: int | None) -> Panel:
        return Panel(
            title=title,
            x_label="model after round",
            y_label="Dice",
            curves=_dice_curves(run, label),
            limits=(0.0, 1.0),
            released=best_round,
            reference=reference if label is None else references.get(label),
        )

    whole = panel("Mean of labels" if len(run.labels) > 1 else run.label_name(1), None)
    panels = [whole]
    enlarged = _enlarged(whole)
    if enlarged is not None:
        panels.append(enlarged)
    if 1 < len(run.labels) <= MOST_LABEL_PANELS:
        panels += [panel(name, label) for label, name in run.labels.items()]
    return draw_panels(panels, "dice", "Curves of each site's validation Dice by round of the model")


def _dice_curves(run: RunRecord, label: int | None) -> list[Curve]:
    def score(part: SiteRound | Round) -> float | None:
        return part.mean_dice if label is None else part.dice.get(label)

    x = [line.model_round for line in run.rounds]
    return [*_curves_of_sites(run, run.rounds, x, score), _curve(x, map(score, run.rounds), MEAN_STYLE)]


def _curves_of_sites(
    run: RunRecord, lines: Sequence[Round], x: Sequence[int], value: Callable[[SiteRound], float | None]
) -> list[Curve]:
    curves = []
    for index, site in enumerate(run.sites):
        parts = [line.sites.get(site.name) for line in lines]
        curves.append(_curve(x, (None if part is None else value(part) for part in parts), site_style(index)))
    return curves


def _curve(x: Sequence[int], y: Iterable[float | None], style: CurveStyle) -> Curve:
    return Curve(x, [math.nan if value is None else value for value in y], style)


def _enlarged(panel: Panel) -> Panel | None:
    """Zoom in on the second half of a panel's rounds; return None if there are too few rounds or no values."""
    rounds = panel.curves[0].x
    if len(rounds) < 5:
        return None
    half = len(rounds) // 2
    curves = [Curve(curve.x[half:], curve.y[half:], curve.style) for curve in panel.curves]
    values = [value for curve in curves for value in curve.y if math.isfinite(value)]
    if not values:
        return None
    margin = max(0.08 * (max(values) - min(values)), 0.005)
    limits = (max(min(values) - margin, 0.0), min(max(values) + margin, 1.0))
    reference = panel.reference if panel.reference is not None and limits[0] <= panel.reference <= limits[1] else None
    released = panel.released if panel.released is not None and panel.released >= rounds[half] else None
    title = f"{panel.title}, from round {rounds[half]} on (enlarged)"
    return Panel(title, panel.x_label, panel.y_label, curves, limits, released, reference)


def loss_curves(run: RunRecord) -> str | None:
    """Draw the training loss of each round and the validation loss of the model after each round."""
    trained = run.training_rounds
    x = [line.number for line in trained]
    training = _curves_of_sites(run, trained, x, lambda part: part.train_loss)
    training.append(_curve(x, (line.train_loss for line in trained), MEAN_STYLE))
    x = [line.model_round for line in run.rounds]
    validation = _curves_of_sites(run, run.rounds, x, lambda part: part.validation_loss)
    panels = [
        Panel(title, x_label, "loss", curves)
        for title, x_label, curves in (
            ("Training loss", "round", training),
            ("Validation loss", "model after round", validation),
        )
        if any(math.isfinite(value) for curve in curves for value in curve.y)
    ]
    return draw_panels(panels, "loss", "Curves of each site's loss by round") if panels else None
