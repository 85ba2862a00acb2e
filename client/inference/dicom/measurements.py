"""Sizes of structures in a label map."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import ConvexHull

from common.imaging.geometry import Grid

_AT_A_TIME = 500


@dataclass(frozen=True)
class Size:
    """The size of a structure.

    Attributes
    ----------
    volume_ml
        Voxels times the volume of one.
    diameter_mm
        Distance of those two corners of the structure's voxels that are furthest apart; None without voxels.
    """

    volume_ml: float
    diameter_mm: float | None


def measure(label: NDArray[np.uint8], grid: Grid, labels: list[int]) -> dict[int, Size]:
    """Measure structures.

    Parameters
    ----------
    label
        Label map on ``grid``.
    grid
        Where the voxels are.
    labels
        Values to measure.
    """
    boxes = find_objects(label, max_label=max(labels))
    found = {}
    for value in labels:
        box = boxes[value - 1]
        if box is None:
            found[value] = Size(0.0, None)
            continue
        mask = label[box] == value
        volume = int(np.count_nonzero(mask)) * grid.voxel_volume_ml
        found[value] = Size(volume, largest_diameter(mask, grid.affine[:3, :3]))
    return found


def largest_diameter(mask: NDArray[np.bool_], axes: NDArray[np.float64]) -> float:
    """Return the largest distance in mm between corners of a mask's voxels.

    The two corners are vertices of the convex hull, so only these are compared.

    Parameters
    ----------
    mask
        (x, y, z), with at least one voxel.
    axes
        Columns: steps in mm from voxel to voxel along x, y, z.
    """
    corners = _outer_corners(mask)
    hull = (corners[ConvexHull(corners).vertices] - corners.mean(axis=0)) @ axes.T
    squares = (hull**2).sum(axis=1)
    furthest, pair = -1.0, (0, 0)
    for start in range(0, len(hull), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        distances = squares[part, None] + squares - 2 * hull[part] @ hull.T
        one, other = np.unravel_index(distances.argmax(), distances.shape)
        if distances[one, other] > furthest:
            furthest, pair = distances[one, other], (start + one, other)
    return float(np.linalg.norm(hull[pair[0]] - hull[pair[1]]))


def _outer_corners(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first and last corner of each line of corners along x: no other one can be a vertex of the hull."""
    filled = mask.any(axis=0)
    first = np.where(filled, mask.argmax(axis=0), mask.shape[0])
    end = np.where(filled, mask.shape[0] - mask[::-1].argmax(axis=0), 0)
    shape = (mask.shape[1] + 1, mask.shape[2] + 1)
    lowest, highest = np.full(shape, mask.shape[0]), np.zeros(shape, dtype=np.int64)
    halves = (slice(None, -1), slice(1, None))
    for corner in product(halves, halves):
        lowest[corner] = np.minimum(lowest[corner], first)
        highest[corner] = np.maximum(highest[corner], end)
    lines = np.argwhere(highest > lowest)
    y, z = lines.T
    return np.concatenate((np.column_stack((lowest[y, z], lines)), np.column_stack((highest[y, z], lines))))
