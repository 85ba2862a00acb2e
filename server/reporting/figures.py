"""Drawing for the report: curves as SVG that follows the page's colours, slices as PNG.

Curves are drawn in placeholder colours which become CSS variables, so that one drawing is readable on a light and on
a dark page. Hues are those of Okabe and Ito (2008), chosen to stay apart for colour-blind readers; the page's style
sheet holds a darker and a lighter set of them. Markers and dashes carry the same distinction without colour.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from server.run_store.record import Example

SITE_COLOURS = 8
LABEL_COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#2fc59a", "#e58fbf", "#ff7b33", "#8fa8ff")
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# Hardly anybody sees more than 64 greys, and pictures are a quarter smaller with them.
_GREYS = mpl.colormaps["gray"].resampled(64)
PREDICTION_DASH = (0.0, (2.2, 1.5))
PICTURE_INCHES = 9.4
# Rounds beyond which markers would hide the curve and swell the file.
MOST_MARKERS = 40

_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)"} | {
    f"#04{index:02x}04": f"var(--site-{index})" for index in range(SITE_COLOURS)
}
# Releases of matplotlib disagree on the type of settings, hence Any.
_RC: Any = {
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
    """How one series is drawn everywhere: a colour of the page, a dash pattern and a marker; higher layers on top."""

    colour: str
    dash: str | tuple[float, tuple[float, ...]] = "-"
    marker: str = ""
    width: float = 1.5
    layer: float = 3.0


# Thick and beneath the sites' curves, so that it hides none of them.
MEAN_STYLE = CurveStyle(_INK, width=3.0, layer=2.5)


def site_style(index: int) -> CurveStyle:
    """The style of the site at this place in the run's list of sites; after 32 sites styles repeat."""
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
        of the vertical axis; None fits it to the curves.
    released
        horizontal position of the released model.
    reference
        height of the pooled model.
    whole_x
        whether the horizontal axis counts something, such as rounds.
    ticks
        words for the horizontal positions 0, 1, 2, ...; None writes numbers.
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
    """Panels side by side as an inline SVG element.

    Parameters
    ----------
    panels
        at least one; four stand two by two, others three in a row.
    name
        unique in the page: prefix of all identifiers inside.
    description
        read out by screen readers.
    """
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with mpl.rc_context(_RC):
        figure = Figure(
            figsize=(9.6, (2.9 if columns < 3 else 2.5) * rows), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
        )
        for index, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, index + 1), panel)
        view, body = _to_svg_parts(figure, name)
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(description)}">{body}</svg>'


def draw_swatch(style: CurveStyle, name: str) -> str:
    """A short piece of the series' line as an SVG symbol called ``name``, for legends and tables."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(0.42, 0.16))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, 1), ylim=(-1, 1))
        axes.set_axis_off()
        axes.plot([0.03, 0.97], [0, 0], color=style.colour, linestyle=style.dash, linewidth=style.width)
        axes.plot([0.5], [0], color=style.colour, marker=style.marker, markersize=5)
        view, body = _to_svg_parts(figure, name)
    return f'<symbol id="{name}" viewBox="{view}">{body}</symbol>'


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    if panel.ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=panel.whole_x))
    else:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks)
    for curve in panel.curves:
        marker = curve.style.marker if len(curve.x) <= MOST_MARKERS else ""
        # A lone point has no line to show it.
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
    """The view box and the elements of a figure, without prologue, metadata, and identifiers that others may have."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    salt: Any = {"svg.hashsalt": name}
    with mpl.rc_context(salt):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
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


@dataclass(frozen=True)
class _Plane:
    """A plane through the volume: its name, fixed axis, axes across and up, and letters left, right, below, above.

    Right is drawn on the left and anterior on the left, as radiologists look at it; RAS+ axes run the other way.
    """

    name: str
    fixed: int
    across: int
    up: int
    letters: str


_PLANES = (
    _Plane("sagittal", 0, 1, 2, "APIS"),
    _Plane("coronal", 1, 0, 2, "RLIS"),
    _Plane("axial", 2, 0, 1, "RLPA"),
)


def label_colour(label: int) -> str:
    """The colour of a label's contours, on dark and grey ground."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def prediction_colour(label: int) -> str:
    """A paler tint of the label's colour, in which its predicted contour is drawn."""
    colour = label_colour(label)
    channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(channel + (255 - channel) * 0.6):02x}" for channel in channels)


def draw_case(example: Example, dots_per_inch: int = 100, margin_mm: float = 8.0) -> str:
    """A validation case in three planes through its structure, as a ``data:`` address of a PNG.

    The planes go through the voxel of the true structure that is nearest to its centroid (through the prediction if
    there is no true structure, through the middle of the volume if there is neither). The view is cropped to truth
    and prediction with a margin. True contours are solid, predicted ones dashed and paler; both run halfway between
    voxel centres.

    Parameters
    ----------
    example
        the case to draw.
    dots_per_inch
        of a picture that is 9.4 inches wide; fewer make a smaller file.
    margin_mm
        how much of the surroundings to show on each side.
    """
    centre = _central_voxel(example)
    box = _crop_box(example, margin_mm)
    sizes = [(box[axis].stop - box[axis].start) * example.spacing[axis] for axis in range(3)]
    widths = [sizes[plane.across] for plane in _PLANES]
    height = max(sizes[plane.up] for plane in _PLANES)
    scale = min(9.0 / sum(widths), 3.8 / height)
    window = _grey_window(example.image[box])
    with mpl.rc_context(_RC | {"text.color": "#f2f2f2", "axes.titlelocation": "center"}):
        figure = Figure(figsize=(PICTURE_INCHES, height * scale + 0.4), facecolor="#101214")
        margin = (1 - (sum(widths) * scale + 0.2) / PICTURE_INCHES) / 2
        top = 1 - 0.3 / (height * scale + 0.4)
        grid = figure.add_gridspec(
            1, 3, width_ratios=widths, left=margin, right=1 - margin, bottom=0.02, top=top, wspace=0.03
        )
        for column, plane in enumerate(_PLANES):
            _draw_plane(figure.add_subplot(grid[0, column]), example, plane, centre[plane.fixed], box, window)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=dots_per_inch)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _central_voxel(example: Example) -> tuple[int, int, int]:
    for labels in (example.truth, example.prediction):
        if labels.any():
            return _voxel_nearest_to_centroid(labels > 0, example.spacing)
    x, y, z = example.truth.shape
    return (x // 2, y // 2, z // 2)


def _voxel_nearest_to_centroid(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[int, int, int]:
    """The centroid of a bent structure may lie outside it; the planes should not."""
    counts = [mask.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    centroid = [float(np.average(np.arange(len(count)), weights=count)) for count in counts]
    x, y, z = (round(position) for position in centroid)
    if not mask[x, y, z]:
        voxels = np.argwhere(mask)
        distances = ((voxels - centroid) * spacing) ** 2
        x, y, z = (int(position) for position in voxels[distances.sum(axis=1).argmin()])
    return (x, y, z)


def _crop_box(example: Example, margin_mm: float) -> tuple[slice, slice, slice]:
    mask = (example.truth > 0) | (example.prediction > 0)
    slices = []
    for axis, size in enumerate(mask.shape):
        present = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        margin = int(np.ceil(margin_mm / example.spacing[axis]))
        low, high = (present[0] - margin, present[-1] + margin + 1) if len(present) else (0, size)
        slices.append(slice(max(int(low), 0), min(int(high), size)))
    return (slices[0], slices[1], slices[2])


def _grey_window(image: NDArray[np.float32]) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(np.nan_to_num(image), (0.5, 99.5)))
    return (low, high if high > low else low + 1.0)


def _draw_plane(
    axes: Axes,
    example: Example,
    plane: _Plane,
    position: int,
    box: tuple[slice, slice, slice],
    window: tuple[float, float],
) -> None:
    """One plane in mm; the horizontal axis runs against RAS+."""
    where: list[slice | int] = list(box)
    where[plane.fixed] = position
    index = tuple(where)
    across, up = example.spacing[plane.across], example.spacing[plane.up]
    columns, rows = example.image[index].shape
    width, height = columns * across, rows * up
    axes.imshow(
        example.image[index].T,
        cmap=_GREYS,
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=(0, width, 0, height),
        interpolation="bilinear",
    )
    x = (np.arange(columns + 2) - 0.5) * across
    y = (np.arange(rows + 2) - 0.5) * up
    present = set(np.unique(example.truth[index])) | set(np.unique(example.prediction[index]))
    # Dark halos lie beneath all lines, so that none hides another; truth next, prediction on top.
    layers = [(labels, value) for labels in (example.truth, example.prediction) for value in sorted(present - {0})]
    for labels, value in layers:
        _draw_contour(axes, x, y, labels[index] == value, "#00000080", "-", 3.0)
    for labels, value in layers:
        if labels is example.truth:
            _draw_contour(axes, x, y, labels[index] == value, label_colour(int(value)), "-", 1.5)
        else:
            _draw_contour(axes, x, y, labels[index] == value, prediction_colour(int(value)), PREDICTION_DASH, 1.7)
    axes.set_xlim(width, 0)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    axes.set_title(plane.name, fontsize=10, color="#d0d4d8", pad=5)
    _draw_letters(axes, plane.letters)
    _draw_scale(axes, width, height)


def _draw_contour(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    mask: NDArray[np.bool_],
    colour: str,
    dash: str | tuple[float, tuple[float, ...]],
    width: float,
) -> None:
    if mask.any():
        # A rim of background closes contours at the edge of the view.
        height = np.pad(mask, 1).T.astype(float)
        axes.contour(x, y, height, levels=[0.5], colors=[colour], linewidths=width, linestyles=[dash])


def _draw_letters(axes: Axes, letters: str) -> None:
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.02, "center", "bottom"))
    for letter, (x, y, horizontal, vertical) in zip(letters, (*places, (0.5, 0.98, "center", "top")), strict=True):
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            ha=horizontal,
            va=vertical,
            fontsize=8.5,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="#000000")],
        )


def _draw_scale(axes: Axes, width: float, height: float) -> None:
    """A bar of 1, 2, 5, 10, ... mm: the longest that fits a third of the picture."""
    length = max((step for step in (1, 2, 5, 10, 20, 50, 100) if step <= width / 3), default=1)
    right, level = width * 0.04, height * 0.05
    outline = [patheffects.withStroke(linewidth=3.5, foreground="#000000")]
    axes.plot([right, right + length], [level, level], color="#ffffff", linewidth=1.8, path_effects=outline)
    axes.text(
        right,
        level + height * 0.02,
        f"{length} mm",
        ha="right",
        va="bottom",
        fontsize=8,
        path_effects=[patheffects.withStroke(linewidth=2, foreground="#000000")],
    )
