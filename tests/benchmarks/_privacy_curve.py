"""A page with the curve of Dice against epsilon: every seed's, and their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from common.system.files import write_atomically
from server.reporting.figures import Curve, Panel, draw_panels, draw_swatch, site_style
from server.reporting.report import page_template

HEADINGS = (
    "Start",
    "Epsilon",
    "Signal-to-noise foretold",
    "Of what the start needs",
    "Dice of each seed",
    "Mean",
    "Spread",
)


@dataclass
class Point:
    """One setting: how it starts, its budget, what was foretold of it, and the Dice that each seed reached.

    foretold: the ``privacy`` of a run's ``summary.json``; None without privacy.
    """

    start: str
    epsilon: str
    dice: list[float] = field(default_factory=list)
    foretold: dict[str, Any] | None = None

    @property
    def mean(self) -> float:
        """Over seeds; NaN before the first."""
        return mean(self.dice) if self.dice else math.nan

    def cells(self) -> list[str]:
        """One text for each of ``HEADINGS``."""
        return [
            self.start,
            self.epsilon,
            f"{self.foretold['signal_to_noise']:.2f}" if self.foretold else "",
            f"{self.foretold['share_of_enough']:.3f}" if self.foretold else "",
            " ".join(f"{score:.3f}" for score in self.dice),
            f"{self.mean:.3f}",
            f"{max(self.dice) - min(self.dice):.3f}" if self.dice else "",
        ]

    def describe(self) -> str:
        """A row of a Markdown table."""
        return f"| {' | '.join(self.cells())} |"


def write_curve(path: Path, points: Sequence[Point]) -> None:
    """Writes the page; seeds that are not finished are left out."""
    styles = {start: site_style(index) for index, start in enumerate(dict.fromkeys(point.start for point in points))}
    budgets = list(dict.fromkeys(point.epsilon for point in points))
    places = list(range(len(budgets)))
    curves = []
    for start, style in styles.items():
        mine = {point.epsilon: point for point in points if point.start == start}
        for seed in range(max(len(point.dice) for point in mine.values())):
            scores = [mine[b].dice[seed] if seed < len(mine[b].dice) else math.nan for b in budgets]
            curves.append(Curve(places, scores, replace(style, width=0.7, marker="")))
        curves.append(Curve(places, [mine[b].mean for b in budgets], replace(style, width=2.5, layer=4.0)))
    panel = Panel("Dice of the released model", "epsilon", "Dice", curves, (0.0, 1.0), ticks=budgets)
    drawing = draw_panels([panel], "curve", "Curves of validation Dice against epsilon, for each start")
    symbols = "".join(draw_swatch(style, f"swatch-{start}") for start, style in styles.items())
    legend = "".join(
        f'<li><svg class="swatch" aria-hidden="true"><use href="#swatch-{start}"/></svg> {escape(start)} start</li>'
        for start in styles
    )
    head = "".join(f"<th>{escape(text)}</th>" for text in HEADINGS)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in point.cells())}</tr>" for point in points)
    style_sheet = page_template("style.css").render()
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Dice against epsilon</title><style>{style_sheet}</style></head>
<body><svg class="symbols" aria-hidden="true">{symbols}</svg>
<h1>Dice against epsilon</h1>
<p>hippocampus-private.yaml, warm: from a model trained on synthetic volumes; cold: from nothing.</p>
<ul class="legend">{legend}</ul><div class="figure scroll">{drawing}</div>
<p class="how">Thick: mean over seeds; thin: each seed. Dice are exact, of the released model on the validation
patients, mean over sites. Budgets stand side by side, not to scale; none is the same network without privacy, with
settings that suit it.</p>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></body></html>
"""
    write_atomically(path, page)
