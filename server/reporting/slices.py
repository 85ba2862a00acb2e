"""Pictures of validation cases: three slices with contours of truth and prediction, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from server.reporting.figures import MATPLOTLIB_STYLE
from server.run_store.record import Example

LABEL_COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#2fc59a", "#e58fbf", "#ff7b33", "#8fa8ff")
# Few people can tell more than 64 greys apart, and pictures are a quarter smaller with them.
_GREYS = mpl.colormaps["gray"].resampled(64)
PREDICTION_DASH = (0.0, (2.2, 1.5))
PICTURE_INCHES = 9.4


@dataclass(frozen=True)
class _Plane:
    """A plane through the volume: its name, fixed axis, axes across and up, and letters left, right, below, above.

    By radiological convention, right and anterior are on the left of the picture; RAS+ axes run the other way.
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
    """Return the colour of a label's contours, chosen for dark and grey backgrounds."""
    return LABEL_COLOURS[(label - 1) % len(LABEL_COLOURS)]


def prediction_colour(label: int) -> str:
    """Return a paler tint of the label's colour, for its predicted contour."""
    colour = label_colour(label)
    channels = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(channel + (255 - channel) * 0.6):02x}" for channel in channels)


def draw_case(example: Example, dots_per_inch: int = 100, margin_mm: float = 8.0) -> str:
    """Draw a validation case in three planes through its structure, as a ``data:`` URL of a PNG.

    The planes pass through the voxel of the true structure nearest to its centroid. Without a true structure they pass
    through the predicted one; without either, through the centre of the volume. The view is cropped to truth and
    prediction with a margin. True contours are solid, predicted ones dashed and paler; both run halfway between voxel
    centres.

    Parameters
    ----------
    example
        The case to draw.
    dots_per_inch
        Resolution of the picture, which is 9.4 inches wide; a lower one makes a smaller file.
    margin_mm
        Margin on each side.
    """
    centre = _central_voxel(example)
    box = _crop_box(example, margin_mm)
    sizes = [(box[axis].stop - box[axis].start) * example.spacing[axis] for axis in range(3)]
    widths = [sizes[plane.across] for plane in _PLANES]
    height = max(sizes[plane.up] for plane in _PLANES)
    scale = min(9.0 / sum(widths), 3.8 / height)
    window = _grey_window(example.image[box])
    with mpl.rc_context(MATPLOTLIB_STYLE | {"text.color": "#f2f2f2", "axes.titlelocation": "center"}):
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
    """Return the voxel nearest to the centroid, because the centroid of a bent structure may lie outside it."""
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
    """Draw one plane in mm; the horizontal axis runs against RAS+."""
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
    # Dark halos go below all lines, so that no halo hides a line; then truth, then prediction.
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
        # A border of background closes contours at the edge of the view.
        padded = np.pad(mask, 1).T.astype(float)
        axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=width, linestyles=[dash])


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
    """Draw a scale bar of 1, 2, 5, 10, ... mm: the longest that fits in a third of the picture."""
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
