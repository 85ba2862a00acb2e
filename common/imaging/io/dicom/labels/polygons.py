"""Areas within closed contours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

_MOST_CROSSINGS = 2**20
"""Crossings of edges and rows that are computed at once."""

Vector = NDArray[np.float64]
Window = tuple[slice, slice]


class ContourError(ValueError):
    """Contours enclose no area that everybody agrees on; the text continues "contours that ..."."""


def fill(polygons: Sequence[Vector], rows: int, columns: int) -> NDArray[np.bool_]:
    """Return the pixels (rows, columns) whose centres lie within the contours of one region on one slice.

    A contour within a contour is a hole, and one within the hole an island. Contours side by side may share a line of
    pixels, which belongs to both. Centres are at whole numbers. A centre on an edge belongs to what begins there, as
    rows and columns are counted, and not to what ends there: polygons that share an edge share no pixel and leave none
    out.

    Parameters
    ----------
    polygons
        Corners (n, 2) of each as column and row; the last is joined to the first. They may leave the image.
    rows, columns
        Size of the image.

    Raises
    ------
    ContourError
        Contours fill the same pixels, cross each other, or go round a pixel more than once.
    """
    found = np.zeros((rows, columns), dtype=bool)
    # Innermost contour so far of each pixel: 0 for none, otherwise an index into depths and sizes.
    innermost = np.zeros((rows, columns), dtype=np.int32)
    depths, sizes = [0], [0]
    for polygon in sorted(polygons, key=_area, reverse=True):
        window, mask = _within(polygon, rows, columns)
        size = int(np.count_nonzero(mask))
        if size == 0:
            continue
        outer = _outer(innermost[window], mask, depths)
        if sizes[outer] == size:
            raise ContourError("fill the same pixels")
        depths.append(depths[outer] + 1)
        sizes.append(size)
        innermost[window][mask] = len(depths) - 1
        found[window][mask] = depths[-1] % 2 == 1
    return found


def _outer(innermost: NDArray[np.int32], mask: NDArray[np.bool_], depths: Sequence[int]) -> int:
    """Return the innermost of the larger contours within which the pixels of a mask lie; 0 if there is none."""
    present, counts = np.unique(innermost[mask], return_counts=True)
    outer = int(present[counts.argmax()])
    beside = [depths[other] == depths[outer] + 1 for other in present.tolist() if other != outer]
    if beside:
        there = innermost == outer
        if not all(beside) or (mask & ~there & ~binary_dilation(there)).any():
            raise ContourError("cross each other")
    return outer


def _area(polygon: Vector) -> float:
    following = np.roll(polygon, -1, axis=0)
    return abs(float(np.sum(polygon[:, 0] * following[:, 1] - following[:, 0] * polygon[:, 1]))) / 2


def _within(polygon: Vector, rows: int, columns: int) -> tuple[Window, NDArray[np.bool_]]:
    """Return which pixels of a part of the image lie within a polygon, and that part."""
    left, top = np.clip(np.ceil(polygon.min(axis=0)), 0, (columns, rows)).astype(int).tolist()
    right, bottom = np.clip(np.ceil(polygon.max(axis=0)), 0, (columns, rows)).astype(int).tolist()
    height, width = bottom - top, right - left
    # Edges that cross a row just before a column: they go round what is left of there, one way or the other.
    edges = np.zeros(height * (width + 1))
    for row, column, direction in _crossings(polygon, rows):
        place = np.clip(np.ceil(column), left, right).astype(np.int64) - left
        edges += np.bincount((row - top) * (width + 1) + place, direction, minlength=edges.size)
    turns = np.cumsum(edges.reshape(height, width + 1)[:, :0:-1], axis=1)[:, ::-1]
    if (np.abs(turns) > 1).any():
        raise ContourError("go round a pixel more than once")
    return (slice(top, bottom), slice(left, right)), turns != 0


def _crossings(polygon: Vector, rows: int) -> Iterator[tuple[NDArray[np.int64], Vector, Vector]]:
    """Return rows, the columns at which the edges of a polygon cross them, and 1 downwards or -1 upwards, in parts."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    # From top to bottom, so that an edge crosses a row at the same place whichever polygon it belongs to.
    upward = start[:, 1] > end[:, 1]
    top, bottom = np.where(upward[:, None], end, start), np.where(upward[:, None], start, end)
    first = np.clip(np.ceil(top[:, 1]), 0, rows).astype(np.int64)
    counts = np.clip(np.ceil(bottom[:, 1]), 0, rows).astype(np.int64) - first
    parts = np.cumsum(counts) // _MOST_CROSSINGS
    for part in np.unique(parts[counts > 0]):
        edges = np.flatnonzero((parts == part) & (counts > 0))
        of = np.repeat(edges, counts[edges])
        begins = np.repeat(np.cumsum(counts[edges]) - counts[edges], counts[edges])
        row = first[of] + np.arange(len(of)) - begins
        slope = (bottom[of, 0] - top[of, 0]) / (bottom[of, 1] - top[of, 1])
        yield row, top[of, 0] + (row - top[of, 1]) * slope, np.where(upward[of], -1.0, 1.0)
