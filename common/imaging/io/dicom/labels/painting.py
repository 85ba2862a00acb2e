"""Label maps as they are painted plane by plane, and where a plane lies on the grid of a series."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.formatting import counted
from common.imaging.geometry import Grid
from common.imaging.io.dicom.geometry import POSITION_TOLERANCE
from common.imaging.io.dicom.slices import RefusedError
from common.imaging.io.dicom.tilt import UPRIGHT, Shift

LATTICE_TOLERANCE = 0.1
"""Largest distance in voxels, along each axis, between a plane's pixels and the voxels of the series. Where
``POSITION_TOLERANCE`` mm is more it counts, because positions are written with one decimal or more, but never more than
``_MOST``."""
_MOST = 0.25

Vector = NDArray[np.float64]
_LPS_TO_RAS = np.array((-1.0, -1.0, 1.0))


class Painter:
    """A label map in the making.

    Parameters
    ----------
    shape
        Columns, rows and slices of the series.

    Attributes
    ----------
    label
        uint8 (columns, rows, slices).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.label: NDArray[np.uint8] = np.zeros(shape, dtype=np.uint8)
        self._overlaps: Counter[tuple[int, int]] = Counter()
        self._levels: dict[int, set[int]] = {}

    def paint(self, plane: NDArray[np.uint8], mask: NDArray[np.bool_], value: int, level: int) -> None:
        """Give a label's value to pixels of a plane, which is a view of ``label``; the larger value stays.

        Parameters
        ----------
        plane
            The view.
        mask
            Its pixels that are the label.
        value
            Of the label.
        level
            Place of the plane in its stack.
        """
        if mask.any():
            self._levels.setdefault(value, set()).add(level)
        there = plane[mask]
        for other in np.unique(there[(there != 0) & (there != value)]):
            pair = (min(int(other), value), max(int(other), value))
            self._overlaps[pair] += int(np.count_nonzero(there == other))
        plane[mask] = np.maximum(there, np.uint8(value))

    def sparse(self) -> list[tuple[int, int, int]]:
        """Return labels that leave slices out regularly, on how many slices they are, and of how many."""
        found = []
        for value, levels in sorted(self._levels.items()):
            steps = np.diff(sorted(levels))
            if len(levels) > 2 and np.median(steps) > 1:
                found.append((value, len(levels), int(steps.sum()) + 1))
        return found

    def overlaps(self) -> list[tuple[int, int]]:
        """Return pairs of labels that have voxels in common."""
        return sorted(self._overlaps)

    def require_no_overlaps(self) -> None:
        """Check that no voxel had two labels.

        Raises
        ------
        RefusedError
            One had.
        """
        for (one, other), count in self._overlaps.items():
            raise RefusedError(
                f"gives {counted(count, 'voxel')} both of the labels {one} and {other}: correct it, or let the later "
                "label win (dicom: {overlap: later} in site.yaml)"
            )


class Lattice:
    """The voxels of a series as its files hold them, as places for planes.

    Parameters
    ----------
    grid
        Grid of the series: columns, rows, slices.
    size
        Columns and rows of its slices.
    shift
        How they lie on the grid.

    Attributes
    ----------
    shape
        Columns, rows and slices.
    tolerance
        In voxels, along each axis.
    """

    def __init__(self, grid: Grid, size: tuple[int, int], shift: Shift = UPRIGHT) -> None:
        slices = grid.shape[2]
        self.shape = (*size, slices)
        affine = grid.affine.copy()
        affine[:3, 2] += affine[:3, :2] @ (shift.columns, shift.rows)
        affine[:3, 3] -= affine[:3, :2] @ shift.start(slices)
        self._inverse = np.linalg.inv(affine)
        self._spacing = np.linalg.norm(affine[:3, :3], axis=0)
        self.tolerance = np.minimum(np.maximum(LATTICE_TOLERANCE, POSITION_TOLERANCE / self._spacing), _MOST)

    def indices(self, points: Vector) -> Vector:
        """Return the places (n, 3) of points (n, 3), LPS+ in mm, as columns, rows and slices from 0."""
        found = (points * _LPS_TO_RAS) @ self._inverse[:3, :3].T + self._inverse[:3, 3]
        return np.asarray(found)

    def place(self, position: Vector, across: Vector, down: Vector, size: tuple[int, int]) -> Place:
        """Return where a plane lies.

        Parameters
        ----------
        position
            Centre of its first pixel, LPS+ in mm.
        across, down
            Steps in mm from column to column, and from row to row.
        size
            Rows and columns.

        Raises
        ------
        RefusedError
            Its pixels are not voxels of the series.
        """
        rows, columns = size
        # Wrong numbers become large or no numbers, and are refused with the others.
        with np.errstate(all="ignore"):
            start = self.indices(position[None])[0]
            steps = self.indices(np.stack((position + across, position + down))) - start
            axes = np.abs(steps).argmax(axis=1)
            units = np.zeros((2, 3))
            units[[0, 1], axes] = np.sign(steps[[0, 1], axes])
            ends = np.array([(0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)], dtype=np.float64)
            found, wanted = start + ends @ steps, np.rint(start) + ends @ units
            off = np.abs(found - wanted)
            fits = axes[0] != axes[1] and bool((off <= self.tolerance).all())
        if not fits:
            distance = float(np.max(np.linalg.norm(off * self._spacing, axis=1)))
            raise RefusedError(
                f"is on another grid than its series: pixels are up to {distance:.3g} mm from its voxels"
            )
        if (wanted < 0).any() or (wanted >= self.shape).any():
            raise RefusedError("reaches beyond the grid of its series")
        first = np.rint(start).astype(int)
        signs = (int(units[0, axes[0]]), int(units[1, axes[1]]))
        return Place((int(axes[0]), int(axes[1])), (int(first[0]), int(first[1]), int(first[2])), signs, size)


class Place:
    """Where a plane lies on a lattice: axes of its columns and rows, its first voxel, and directions."""

    def __init__(
        self, axes: tuple[int, int], first: tuple[int, int, int], signs: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self._axes, self._first, self._signs, self._size = axes, first, signs, size

    @property
    def level(self) -> tuple[int, int]:
        """Axis across the plane, and the plane's place on it."""
        axis = 3 - sum(self._axes)
        return axis, self._first[axis]

    def view(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the plane (rows, columns) as a view of a label map."""
        index: list[Any] = [self.level[1]] * 3
        for own, sign, size in zip(self._axes, self._signs, (self._size[1], self._size[0]), strict=True):
            end = self._first[own] + sign * size
            index[own] = slice(self._first[own], None if end < 0 else end, sign)
        plane: NDArray[np.uint8] = label[tuple(index)]
        return plane.T if self._axes[0] < self._axes[1] else plane
