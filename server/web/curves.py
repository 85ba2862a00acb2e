"""Curves over rounds: as numbers for the page's script, and as a drawing for pages without one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.run_store.record import Round, RunRecord, SiteRound

MEAN = -1
"""Style of the curve over all sites; sites have 0, 1, ..."""
MOST_POINTS_DRAWN = 150
WIDTH, HEIGHT, MARGIN, LEFT = 640, 240, 30, 52
COLOURS, DASHES = 8, 4
"""Sites that are more than ``COLOURS`` have the same ones again, with other dashes (``page.css``, ``page.js``)."""


@dataclass(frozen=True)
class Curve:
    """One line: a value for each round, None where there is none."""

    name: str
    style: int
    y: Sequence[float | None]


@dataclass(frozen=True)
class Curves:
    """Several lines over the same rounds; ``limits`` of the vertical axis, if they are fixed."""

    x: Sequence[int]
    curves: Sequence[Curve]
    limits: tuple[float, float] | None = None

    def as_json(self, x_label: str) -> dict[str, Any]:
        """Return what the page's script draws; numbers have five digits."""
        curves = [{"name": curve.name, "style": curve.style, "y": _rounded(curve.y)} for curve in self.curves]
        return {"x": list(self.x), "x_label": x_label, "limits": self.limits, "curves": curves}

    def drawing(self) -> dict[str, Any] | None:
        """Return the lines of a picture of ``WIDTH`` by ``HEIGHT``, thinned out, and its scale; None without any.

        Its ``mark`` changes with the picture.
        """
        values = [value for curve in self.curves for value in curve.y if value is not None]
        if not values:
            return None
        low, high = self.limits or (min(values), max(values))
        lines = [
            {"name": curve.name, "style": _style(curve.style), "points": self._points(curve, low, high)}
            for curve in self.curves
        ]
        return {
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "margin": MARGIN,
            "low": f"{low:.3g}",
            "high": f"{high:.3g}",
            "first": self.x[0],
            "last": self.x[-1],
            "lines": lines,
            "mark": zlib.crc32(repr((lines, low, high, self.x[0], self.x[-1])).encode()),
        }

    def _points(self, curve: Curve, low: float, high: float) -> str:
        step = max(1, len(self.x) // MOST_POINTS_DRAWN)
        across, up = max(self.x[-1] - self.x[0], 1), (high - low) or 1.0
        points = []
        for x, y in list(zip(self.x, curve.y, strict=True))[::-step][::-1]:
            if y is not None:
                right = LEFT + (x - self.x[0]) / across * (WIDTH - MARGIN - LEFT)
                down = HEIGHT - MARGIN - (y - low) / up * (HEIGHT - 2 * MARGIN)
                points.append(f"{right:.0f},{down:.0f}")
        # One point is drawn as a line from it to itself.
        return " ".join(points if len(points) > 1 else points * 2)


def dice_curves(run: RunRecord, mean: str) -> Curves:
    """Return each site's Dice of the model after each round, and their mean."""
    x = [line.model_round for line in run.rounds]
    return _curves(run, run.rounds, x, lambda part: part.mean_dice, (mean, lambda line: line.mean_dice), (0.0, 1.0))


def loss_curves(run: RunRecord, mean: str) -> Curves:
    """Return each site's training loss in each round, and their mean."""
    lines = run.training_rounds
    return _curves(run, lines, [n.number for n in lines], lambda part: part.train_loss, (mean, lambda n: n.train_loss))


def epsilon_curves(run: RunRecord, mean: str) -> Curves:
    """Return the epsilon that each site had spent after each round."""
    del mean
    lines = run.training_rounds
    return _curves(run, lines, [line.number for line in lines], lambda part: part.epsilon, None)


def curves_of_runs(records: Sequence[tuple[str, RunRecord]]) -> Curves:
    """Return the mean Dice of several runs, by name, over the rounds that any of them has."""
    scores = [{line.model_round: line.mean_dice for line in record.rounds} for _, record in records]
    x = sorted({number for score in scores for number in score})
    curves = [
        Curve(name, index, [score.get(number) for number in x])
        for index, ((name, _), score) in enumerate(zip(records, scores, strict=True))
    ]
    return Curves(x, curves, (0.0, 1.0))


KINDS: dict[str, Callable[[RunRecord, str], Curves]] = {
    "dice": dice_curves,
    "loss": loss_curves,
    "epsilon": epsilon_curves,
}


def _curves(
    run: RunRecord,
    lines: Sequence[Round],
    x: Sequence[int],
    of_site: Callable[[SiteRound], float | None],
    of_all: tuple[str, Callable[[Round], float | None]] | None,
    limits: tuple[float, float] | None = None,
) -> Curves:
    curves = []
    for index, site in enumerate(run.sites):
        parts = (line.sites.get(site.name) for line in lines)
        curves.append(Curve(site.name, index, [None if part is None else of_site(part) for part in parts]))
    if of_all is not None:
        name, value = of_all
        curves.append(Curve(name, MEAN, [value(line) for line in lines]))
    return Curves(x, [curve for curve in curves if any(y is not None for y in curve.y)], limits)


def _style(number: int) -> str:
    return "c-mean" if number == MEAN else f"c-{number % COLOURS} d-{number // COLOURS % DASHES}"


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.5g}") for value in values]
