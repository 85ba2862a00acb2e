"""From slices to a grid: sorted by position, or refused where they are no regular stack.

File names, instance numbers, slice thickness and spacing between slices are not looked at: scanners, archives and
exports write them as they like, and only positions say where a slice is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from common.formatting import counted
from common.imaging.geometry import AXIS_COSINE_TOLERANCE, Grid
from common.imaging.io.dicom.slices import RefusedError, Slice
from common.imaging.io.dicom.tilt import UPRIGHT, Shift

DOUBLED_MM = 0.01
"""Slices that are closer to each other lie at the same position."""

POSITION_TOLERANCE = 0.1
"""Largest distance in mm of a slice from its place in a regular stack, and in slice distances where these are below
1 mm. Scanners write positions with one decimal or more."""

DIRECTION_TOLERANCE = 1e-4
"""Largest difference between a direction's components in slices of one stack."""

_LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0))

Vector = NDArray[np.float64]


def positions_along(slices: Sequence[Slice]) -> Vector:
    """Return the position (n,) in mm of every slice along the normal of the first one's plane."""
    row, column = _directions(slices[0])
    return np.asarray(np.array([one.position for one in slices]) @ np.cross(row, column))


def lie_on_each_other(slices: Sequence[Slice]) -> bool:
    """Return whether two of the slices are at the same position."""
    return bool((np.diff(np.sort(positions_along(slices))) <= DOUBLED_MM).any())


def same_positions(parts: Sequence[Sequence[Slice]]) -> bool:
    """Return whether all parts have slices at the same positions."""
    if len({len(part) for part in parts}) > 1:
        return False
    whole = positions_along([one for part in parts for one in part])
    each = np.sort(whole.reshape(len(parts), -1), axis=1)
    return bool((np.abs(each - each[0]) <= DOUBLED_MM).all())


def require_one_plane(slices: Sequence[Slice]) -> None:
    """Check that all slices are of one size, and parallel, in one frame of reference.

    Raises
    ------
    RefusedError
        They are not.
    """
    if len({one.frame_of_reference for one in slices}) > 1:
        raise RefusedError("has several frames of reference: its slices have no common position")
    sizes = sorted({(one.form.columns, one.form.rows) for one in slices})
    if len(sizes) > 1:
        raise RefusedError(f"has slices of several sizes ({_listed(f'{x} x {y}' for x, y in sizes)} pixels)")
    spacings = np.array([one.spacing for one in slices])
    if np.abs(spacings - spacings[0]).max() > 1e-4 * spacings[0].max():
        found = sorted({(one.spacing[1], one.spacing[0]) for one in slices})
        raise RefusedError(f"has slices of several pixel spacings ({_listed(f'{x:g} x {y:g}' for x, y in found)} mm)")
    for one in slices:
        _directions(one)
    directions = np.array([(*one.row, *one.column) for one in slices])
    if np.abs(directions - directions[0]).max() > DIRECTION_TOLERANCE:
        planes = len(np.unique(directions.round(3), axis=0))
        raise RefusedError(
            f"has slices in {max(planes, 2)} orientations: a localizer, or turned around an axis", left_out=True
        )


def arrange(slices: Sequence[Slice], straighten: bool) -> tuple[tuple[Slice, ...], Grid, Shift]:
    """Sort parallel slices and place them in the patient.

    Parameters
    ----------
    slices
        At least two, as :func:`require_one_plane` wants them.
    straighten
        Whether slices of a tilted gantry will be moved to an upright stack, instead of being refused.

    Returns
    -------
    tuple[tuple[Slice, ...], Grid, Shift]
        The slices along the normal of their plane, the grid (columns, rows, slices) in RAS+, and how the slices lie
        in it.

    Raises
    ------
    RefusedError
        Slices are missing or doubled, or are no rectangular stack.
    """
    row, column = _directions(slices[0])
    along = positions_along(slices)
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    if (doubled := int(np.count_nonzero(gaps <= DOUBLED_MM))) > 0:
        raise RefusedError(
            f"has {counted(doubled, 'slice')} at the position of another, and no tag that tells them apart"
        )
    places = np.array([slices[index].position for index in order])
    step = (places[-1] - places[0]) / (len(places) - 1)
    _require_regular(places, step, gaps)
    first = slices[0]
    axes = np.stack((row * first.spacing[1], column * first.spacing[0], step), axis=1)
    size = np.array((first.form.columns, first.form.rows, len(places)))
    start, shift = places[0], UPRIGHT
    if (degrees := _tilt_degrees(step, np.cross(row, column))) > 0:
        if not straighten:
            raise RefusedError(f"was taken with a tilted gantry: its slices are shifted by {degrees:.1f} degrees")
        axes[:, 2] = np.cross(row, column) * (step @ np.cross(row, column))
        shift = Shift(float((step @ row) / first.spacing[1]), float((step @ column) / first.spacing[0]))
        start = start + axes[:, :2] @ shift.start(len(places))
        size[:2] += shift.margin(len(places))
    affine = np.eye(4)
    affine[:3] = _LPS_TO_RAS @ np.column_stack((axes, start))
    try:
        grid = Grid((int(size[0]), int(size[1]), int(size[2])), affine)
    except ValueError as error:
        raise RefusedError(f"has no usable geometry: {error}") from None
    return tuple(slices[index] for index in order), grid, shift


def _require_regular(places: Vector, step: Vector, gaps: Vector) -> None:
    typical = float(np.median(gaps))
    regular = places[0] + np.arange(len(places))[:, None] * step
    if np.linalg.norm(places - regular, axis=1).max() <= POSITION_TOLERANCE * min(1.0, typical):
        return
    multiples = gaps / gaps.min()
    holes = int(np.rint(multiples - 1).clip(min=0).sum())
    if holes and np.abs(multiples - np.rint(multiples)).max() <= 2 * POSITION_TOLERANCE:
        raise RefusedError(
            f"lacks {counted(holes, 'slice')}: some are {gaps.min():.4g} mm apart, others {gaps.max():.4g} mm"
        )
    if gaps.max() - gaps.min() <= POSITION_TOLERANCE * min(1.0, typical):
        raise RefusedError("has slices that are not behind each other: their positions are on no straight line")
    raise RefusedError(f"has irregular slice distances, from {gaps.min():.4g} to {gaps.max():.4g} mm")


def _tilt_degrees(step: Vector, normal: Vector) -> float:
    """Return the angle between the way from slice to slice and the normal of their plane; 0 if it is tolerable."""
    sine = float(np.linalg.norm(np.cross(step, normal)) / np.linalg.norm(step))
    return float(np.degrees(np.arcsin(min(1.0, sine)))) if sine > AXIS_COSINE_TOLERANCE else 0.0


def _directions(one: Slice) -> tuple[Vector, Vector]:
    """Return both directions of a slice as unit vectors."""
    row, column = np.array(one.row), np.array(one.column)
    lengths = np.array((np.linalg.norm(row), np.linalg.norm(column)))
    if not (np.abs(lengths - 1) <= 0.01).all():  # also true of NaN
        raise RefusedError("has an orientation that is none (ImageOrientationPatient is no pair of unit vectors)")
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > AXIS_COSINE_TOLERANCE:
        raise RefusedError("has an orientation that is none (ImageOrientationPatient has no right angle)")
    return row, column


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts)
