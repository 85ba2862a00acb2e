"""Geometry of voxel grids in the patient.

World coordinates are RAS+ (x grows to the patient's right, y to the front, z to the head); distances are in mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from common.plan.base import Axes3, Spacing

Scalar = TypeVar("Scalar", bound=np.generic)

AXIS_COSINE_TOLERANCE = 0.01
"""Largest cosine between two voxel axes (0.6 degrees off a right angle) that still counts as a rectangular grid."""

SMALLEST_SPACING_MM = 1e-6
"""A smaller voxel means that the header was never filled in."""

_AXIS_NAMES = ("LR", "PA", "IS")  # against and along each RAS+ axis
_LAST_ROW = np.array((0.0, 0.0, 0.0, 1.0))
_LAST_ROW_TOLERANCE = 1e-8 + 1e-5 * _LAST_ROW
_PERMUTATIONS = np.array(list(permutations(range(3))))


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape of a volume and its position in the patient.

    Raises
    ------
    ValueError
        If the affine is not finite, has zero spacing, is singular, or is sheared by more than
        ``AXIS_COSINE_TOLERANCE``, or if the shape is not three positive numbers.

    Attributes
    ----------
    shape
        Voxels along the three array axes.
    affine
        4x4 float64, from voxel index to RAS+ position in mm; a read-only copy of the argument.
    """

    shape: Axes3
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a volume has three axes of at least one voxel, not the shape {self.shape}")
        affine = np.array(self.affine, dtype=np.float64)
        _check_affine(affine)
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> Spacing:
        """Distance in mm between neighbouring voxel centres along each array axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(x), float(y), float(z))

    @property
    def orientation(self) -> str:
        """Nearest anatomical direction of each array axis, e.g. ``"LAS"``."""
        return "".join(_AXIS_NAMES[axis][sign > 0] for axis, sign in _anatomical_axes(self.affine))

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def corners_mm(self) -> NDArray[np.float64]:
        """Return the positions (8, 3) in mm of the centres of the eight corner voxels."""
        indices = np.stack(np.meshgrid(*[(0, size - 1) for size in self.shape], indexing="ij"), axis=-1).reshape(8, 3)
        return np.asarray(indices @ self.affine[:3, :3].T + self.affine[:3, 3])

    def displacement_mm(self, other: Grid) -> float:
        """Return the largest distance in mm between a corner voxel of this grid and the same corner of ``other``."""
        return float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())

    def matches(self, other: Grid, affine_tolerance_mm: float = 1e-3) -> bool:
        """Return whether both grids have the same shape and all corners agree within the tolerance.

        No other voxel can be further apart than the worst corner, because the displacement is affine.
        """
        return self.shape == other.shape and self.displacement_mm(other) <= affine_tolerance_mm

    def to_ras(self) -> Grid:
        """Return the grid of the same voxels after :func:`reorient_to_ras`."""
        shape = [0, 0, 0]
        affine = self.affine.copy()
        for source_axis, (axis, sign) in enumerate(_anatomical_axes(self.affine)):
            size, step = self.shape[source_axis], self.affine[:3, source_axis]
            shape[axis] = size
            affine[:3, axis] = sign * step
            if sign < 0:
                affine[:3, 3] += (size - 1) * step
        return Grid((shape[0], shape[1], shape[2]), affine)

    def oriented(self, orientation: str) -> Grid:
        """Return the grid of the same voxels stored with the axes in the given directions, e.g. ``"LPS"``.

        Raises
        ------
        ValueError
            If the code does not name each of the three axes once.
        """
        axes = [next((axis for axis, names in enumerate(_AXIS_NAMES) if code in names), 3) for code in orientation]
        if sorted(axes) != [0, 1, 2]:
            raise ValueError(f"{orientation!r} is not an orientation; write one such as RAS or LPS")
        ras = self.to_ras()
        affine = ras.affine.copy()
        for target_axis, (axis, code) in enumerate(zip(axes, orientation, strict=True)):
            step = ras.affine[:3, axis]
            forward = code == _AXIS_NAMES[axis][1]
            affine[:3, target_axis] = step if forward else -step
            if not forward:
                affine[:3, 3] += (ras.shape[axis] - 1) * step
        return Grid((ras.shape[axes[0]], ras.shape[axes[1]], ras.shape[axes[2]]), affine)


def _check_affine(affine: NDArray[np.float64]) -> None:
    if affine.shape != (4, 4):
        raise ValueError(f"an affine is a 4x4 matrix, not {affine.shape}")
    _check_content(affine.tobytes())


@lru_cache(maxsize=256)
def _check_content(content: bytes) -> None:
    """Check a 4x4 matrix of float64; remembered, because each of a dataset's affines is met many times."""
    affine = np.frombuffer(content).reshape(4, 4)
    if not np.isfinite(affine).all():
        raise ValueError("the affine holds NaN or infinite numbers")
    if (np.abs(affine[3] - _LAST_ROW) > _LAST_ROW_TOLERANCE).any():
        raise ValueError(f"the last row of the affine is {affine[3].tolist()}, not 0 0 0 1")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < SMALLEST_SPACING_MM:
        raise ValueError(f"the voxel spacing is zero along an axis ({' x '.join(f'{s:g}' for s in spacing)} mm)")
    axes = affine[:3, :3] / spacing
    if abs(float(np.linalg.det(axes))) < 1e-6:
        raise ValueError("the affine is singular: its voxel axes are linearly dependent")
    cosines = np.abs(axes.T @ axes - np.eye(3))
    if cosines.max() > AXIS_COSINE_TOLERANCE:
        off = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
        raise ValueError(
            f"the voxel axes are sheared, {off:.1f} degrees off a right angle (a tilted gantry?): "
            "resample it to a rectangular grid first"
        )


def _anatomical_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Return for each array axis the nearest world axis (each is used once) and its direction along it, 1 or -1."""
    return _axes_of_content(affine.tobytes())


@lru_cache(maxsize=256)
def _axes_of_content(content: bytes) -> tuple[tuple[int, int], ...]:
    affine = np.frombuffer(content).reshape(4, 4)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # Rounded, so that files of one scan rotated by exactly 45 degrees get the same axes despite rounding errors.
    best = _PERMUTATIONS[np.abs(directions)[_PERMUTATIONS, range(3)].sum(axis=1).round(4).argmax()].tolist()
    return tuple((axis, 1 if directions[axis, source] > 0 else -1) for source, axis in enumerate(best))


def reorient_to_ras(array: NDArray[Scalar], grid: Grid) -> NDArray[Scalar]:
    """Return a view of an array (..., i, j, k) on ``grid`` with its last three axes reordered and flipped to RAS+."""
    axes = _anatomical_axes(grid.affine)
    flips: Any = (Ellipsis, *(slice(None, None, sign) for _, sign in axes))
    leading = array.ndim - 3
    sources = sorted(range(3), key=lambda source: axes[source][0])
    flipped: NDArray[Scalar] = array[flips]
    return flipped.transpose(*range(leading), *(leading + source for source in sources))


def reorient_from_ras(array: NDArray[Scalar], grid: Grid) -> NDArray[Scalar]:
    """Invert :func:`reorient_to_ras`: return a view of a RAS+ array (..., x, y, z) in the axis order of ``grid``."""
    axes = _anatomical_axes(grid.affine)
    flips: Any = (Ellipsis, *(slice(None, None, sign) for _, sign in axes))
    leading = array.ndim - 3
    flipped: NDArray[Scalar] = array.transpose(*range(leading), *(leading + axis for axis, _ in axes))[flips]
    return flipped
