"""Whether a scan's geometry can be true, and whether its header contradicts itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.imaging.geometry import Grid
from common.imaging.ranges import GeometryRanges
from common.imaging.volume import Source

SPACING_TOLERANCE = 0.01
"""Largest relative difference between voxel sizes in one header that counts as rounding."""

PADDING_VALUES = frozenset({-3024.0, -2000.0, -32768.0, 32767.0})
"""What scanners and converters write outside the field of view."""

_ROUNDING = 1e-5
_PADDING_SHARE = 5e-4
_PADDING_DISTANCE = 0.25  # of the range of all other values


@dataclass(frozen=True)
class Contradiction:
    """Two statements of a header that cannot both be true.

    Attributes
    ----------
    text
        What they say, and which one is used.
    changes_input
        Whether a model would see another image if the other one were true.
    """

    text: str
    changes_input: bool


def range_problem(grid: Grid, ranges: GeometryRanges) -> str | None:
    """Describe what cannot be true about the size of a scan; None if all of it can."""
    smallest, largest = ranges.voxel_mm
    spacing = grid.spacing
    # The sizes are float32 in the file, so the limits themselves may be off in the last digits.
    if not (smallest * (1 - 1e-6) <= min(spacing) and max(spacing) <= largest * (1 + 1e-6)):
        return (
            f"has voxels of {_times(spacing)} mm, and only {smallest:g} to {largest:g} mm can be true: is the unit in "
            "its header wrong? Correct it, or change geometry.voxel_mm in site.yaml"
        )
    extent = [size * mm for size, mm in zip(grid.shape, spacing, strict=True)]
    if max(extent) > ranges.extent_mm * (1 + 1e-6):
        return (
            f"is {_times(extent)} mm large, and at most {ranges.extent_mm:g} mm can be true: correct its header, or "
            "change geometry.extent_mm in site.yaml"
        )
    return None


def header_contradictions(source: Source, ranges: GeometryRanges) -> list[Contradiction]:
    """Compare qform, sform and voxel sizes of a NIfTI header."""
    if source.header is None or int(source.header["sform_code"]) == 0:
        return []
    sform = np.asarray(source.header.get_sform(), dtype=np.float64)
    found = [_spacing_contradiction(source.header, sform)]
    if int(source.header["qform_code"]) > 0:
        try:
            qform = np.asarray(source.header.get_qform(), dtype=np.float64)
            if not _same_axes(qform, sform):
                found.append(_orientation_contradiction(Grid((1, 1, 1), qform), Grid((1, 1, 1), sform), ranges))
        except ValueError:
            found.append(Contradiction("its qform is damaged; its sform is used", False))
    return [item for item in found if item is not None]


def padding_problem(values: NDArray[np.float32], lowest: float, highest: float) -> str | None:
    """Describe a padding value that is far from all other values of a channel (x, y, z) without NaN.

    ``lowest`` and ``highest`` are those of the channel. Such a value shifts mean, standard deviation and percentiles
    of the whole scan.
    """
    for padding in {lowest, highest} & PADDING_VALUES:
        others = values[values != padding]
        count = values.size - others.size
        if others.size == 0 or count < _PADDING_SHARE * values.size:
            continue
        low, high = float(others.min()), float(others.max())
        distance = low - padding if padding < low else padding - high
        if distance > _PADDING_DISTANCE * max(high - low, 1e-6):
            share = 100 * count / values.size
            return (
                f"holds the padding value {padding:g} in {share:.2g} % of its voxels, far from all others ({low:g} to "
                f"{high:g}): it ruins the normalisation. Replace it with the value of the background"
            )
    return None


def _same_axes(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Return whether two affines turn and scale alike, but for rounding: by far the most do."""
    largest = float(np.abs(other[:3, :3]).max())
    return bool(np.abs(one[:3, :3] - other[:3, :3]).max() <= _ROUNDING * largest)


def _spacing_contradiction(header: Any, sform: NDArray[np.float64]) -> Contradiction | None:
    pixdim = np.array(header["pixdim"][1:4], dtype=np.float64)
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    if not (pixdim > 0).all() or np.all(np.abs(pixdim / spacing - 1) <= SPACING_TOLERANCE):
        return None
    text = (
        f"its pixdim (qform) says voxels of {_times(pixdim)}, its sform {_times(spacing)}: the sform is used. "
        "Find out which is right, and correct the header"
    )
    return Contradiction(text, True)


def _orientation_contradiction(qform: Grid, sform: Grid, ranges: GeometryRanges) -> Contradiction | None:
    directions = [grid.affine[:3, :3] / np.array(grid.spacing) for grid in (qform, sform)]
    if qform.orientation != sform.orientation:
        what = "left and right" if {"L", "R"} & set(_differing(qform, sform)) else "directions"
        text = (
            f"its qform and sform disagree about {what}: axes {qform.orientation} and {sform.orientation}; "
            "the sform is used. Find out which is right, and correct the header"
        )
        return Contradiction(text, True)
    cosine = (np.trace(directions[0].T @ directions[1]) - 1) / 2
    degrees = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if degrees <= ranges.contradiction_degrees:
        return None
    return Contradiction(f"its qform and sform differ by {degrees:.3g} degrees; the sform is used", False)


def _differing(first: Grid, second: Grid) -> str:
    pairs = zip(first.orientation, second.orientation, strict=True)
    return "".join(one + other for one, other in pairs if one != other)


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
