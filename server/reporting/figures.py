"""The report's curves, as SVG that follows the page's colours.

Curves are drawn in placeholder colours, which are then replaced by CSS variables: the same drawing is readable on a
light and on a dark page. Hues are from the colour-blind-safe palette of Okabe and Ito (2008); the page's style sheet
defines a darker and a lighter set of them. Markers and dashes distinguish the curves without colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from common.formatting import visible

SITE_COLOURS = 8
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# With more points than this, markers would hide the curve and enlarge the file.
MOST_MARKERS = 40

_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"} | {
    f"#04{index:02x}04": f"var(--site-{index})" for index in range(SITE_COLOURS)
}
# Any, because the type of settings differs between matplotlib releases.
MATPLOTLIB_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


@dataclass(frozen=True)
class CurveStyle:
    """Style of a series in all figures: colour, dash pattern and marker; higher layers are drawn on top."""

    colour: str
    dash: str | tuple[float, tuple[float, ...]] = "-"
    marker: str = ""
    width: float = 1.5
    layer: float = 3.0


# Thick and below the sites' curves, so that it hides none of them.
MEAN_STYLE = CurveStyle(_INK, width=3.0, layer=2.5)


def site_style(index: int) -> CurveStyle:
    """Return the style of the site at ``index`` in the run's list of sites; styles repeat after 32 sites."""
    return CurveStyle(
        colour=f"#04{index % SITE_COLOURS:02x}04",
        dash=DASHES[index // SITE_COLOURS % len(DASHES)],
        marker=MARKERS[index % len(MARKERS)],
    )


@dataclass(frozen=True)
class Curve:
    """One series; a NaN in ``y`` is a gap."""

    x: Sequence[float]
    y: Sequence[float]
    style: CurveStyle


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    limits
        Limits of the vertical axis; None fits it to the curves.
    released
        Horizontal position of the released model.
    reference
        Value of a reference model, drawn as a horizontal line.
    whole_x
        Whether the horizontal axis has integers only, such as rounds.
    ticks
        Labels of the horizontal positions 0, 1, 2, ...; None shows numbers.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    limits: tuple[float, float] | None = None
    released: int | None = None
    reference: float | None = None
    whole_x: bool = True
    ticks: Sequence[str] | None = None


def draw_panels(panels: Sequence[Panel], name: str, description: str) -> str:
    """Draw panels side by side as an inline SVG element.

    Parameters
    ----------
    panels
        At least one. Four panels form a 2 × 2 grid, other numbers up to three per row.
    name
        Prefix of all identifiers inside; unique on the page.
    description
        Text for screen readers.
    """
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with mpl.rc_context(MATPLOTLIB_STYLE):
        figure = Figure(
            figsize=(9.6, (2.9 if columns < 3 else 2.5) * rows), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
        )
        for index, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, index + 1), panel)
        view, body = _to_svg_parts(figure, name)
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(description)}">{body}</svg>'


@dataclass(frozen=True)
class IntervalPanel:
    """One pair of axes with a row for each name: a value and its interval.

    Attributes
    ----------
    rows
        Value, low and high end; None where there is no value, and low and high NaN where there is no interval.
    reference
        Drawn as a vertical line.
    """

    title: str
    x_label: str
    names: Sequence[str]
    rows: Sequence[tuple[float, float, float] | None]
    reference: float | None = None


def draw_intervals(panels: Sequence[IntervalPanel], name: str, description: str) -> str:
    """Draw panels with the same names side by side, up to three per row, as an inline SVG element.

    ``name`` and ``description`` are as in ``draw_panels``.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    height = (0.9 + 0.27 * max(len(panel.names) for panel in panels)) * rows
    with mpl.rc_context(MATPLOTLIB_STYLE):
        figure = Figure(figsize=(9.6, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, index + 1)
            _draw_interval_panel(axes, panel, named=index % columns == 0)
        view, body = _to_svg_parts(figure, name)
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(description)}">{body}</svg>'


def _draw_interval_panel(axes: Axes, panel: IntervalPanel, named: bool) -> None:
    axes.set_title(visible(panel.title))
    axes.set_xlabel(panel.x_label)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    places = range(len(panel.names))
    axes.set_yticks(places, [visible(name) for name in panel.names] if named else [""] * len(panel.names))
    axes.set_ylim(len(panel.names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    for place, row in zip(places, panel.rows, strict=True):
        if row is not None:
            style = site_style(place)
            axes.plot(row[1:], [place, place], color=style.colour, linewidth=style.width)
            axes.plot([row[0]], [place], color=style.colour, marker=style.marker, markersize=5)
    if panel.reference is not None:
        axes.axvline(panel.reference, color=_MUTED, linewidth=1.2, linestyle=(0, (7, 2)), zorder=1)


def draw_swatch(style: CurveStyle, name: str) -> str:
    """Draw a short sample of the series' line as an SVG symbol called ``name``, for legends and tables."""
    with mpl.rc_context(MATPLOTLIB_STYLE):
        figure = Figure(figsize=(0.42, 0.16))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, 1), ylim=(-1, 1))
        axes.set_axis_off()
        axes.plot([0.03, 0.97], [0, 0], color=style.colour, linestyle=style.dash, linewidth=style.width)
        axes.plot([0.5], [0], color=style.colour, marker=style.marker, markersize=5)
        view, body = _to_svg_parts(figure, name)
    return f'<symbol id="{name}" viewBox="{view}">{body}</symbol>'


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(visible(panel.title))
    axes.set_xlabel(visible(panel.x_label))
    axes.set_ylabel(panel.y_label)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if panel.ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=panel.whole_x))
    else:
        axes.set_xticks(range(len(panel.ticks)), [visible(tick) for tick in panel.ticks])
    for curve in panel.curves:
        marker = curve.style.marker if len(curve.x) <= MOST_MARKERS else ""
        # A single point has no line.
        marker = marker or ("o" if len(curve.x) == 1 else "")
        axes.plot(
            curve.x,
            curve.y,
            color=curve.style.colour,
            linestyle=curve.style.dash,
            linewidth=curve.style.width,
            marker=marker,
            markersize=3.6,
            zorder=curve.style.layer,
        )
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    if panel.released is not None:
        axes.axvline(panel.released, color=_MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
    if panel.reference is not None:
        axes.axhline(panel.reference, color=_MUTED, linewidth=1.4, linestyle=(0, (7, 2)), zorder=1)


def _to_svg_parts(figure: Figure, name: str) -> tuple[str, str]:
    """Return the view box and the elements of a figure, without prologue and metadata, with prefixed identifiers."""
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    salt: Any = {"svg.hashsalt": name}
    with mpl.rc_context(salt):
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)
    body = text[text.index("</style>") + len("</style>") : text.rindex("</svg>")]
    body = body[body.index("</defs>") + len("</defs>") :]
    body = re.sub(r'<g id="(?!clip)[^"]*">', "<g>", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("xlink:href", "href").replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', _round_coordinates, body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, variable)
    return (box.group(1) if box else "0 0 1 1", body)


def _round_coordinates(match: re.Match[str]) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", match.group(0)).replace("\n", " ")
