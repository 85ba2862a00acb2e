"""Areas within closed contours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_CROSSINGS = 2**20
"""Crossings of edges and rows that are computed at once."""

Vector = NDArray[np.float64]
_MOST_WAITING = 64
_NONE = np.zeros(0, dtype=np.int64)


def fill(polygons: Sequence[Vector], rows: int, columns: int) -> NDArray[np.bool_]:
    """Return the pixels (rows, columns) whose centres lie within an odd number of polygons.

    Centres are at whole numbers. A centre on an edge belongs to what begins there, as rows and columns are counted, and
    not to what ends there: polygons that share an edge share no pixel and leave none out.

    Parameters
    ----------
    polygons
        Corners (n, 2) of each as column and row; the last is joined to the first. They may leave the image.
    rows, columns
        Size of the image.
    """
    # Number of edges that cross a row just before a column, which each turn what is left of there inside out.
    crossings = np.zeros(rows * (columns + 1), dtype=np.int64)
    waiting: list[NDArray[np.int64]] = []
    for polygon in polygons:
        for row, column in _crossings(polygon, rows):
            place = np.clip(np.ceil(column), 0, columns).astype(np.int64)
            waiting.append(row * (columns + 1) + place)
        # Counted together: contours may be many and small.
        if sum(map(len, waiting)) > _MOST_CROSSINGS or len(waiting) > _MOST_WAITING or polygon is polygons[-1]:
            crossings += np.bincount(np.concatenate(waiting or [_NONE]), minlength=crossings.size)
            waiting.clear()
    from_right = np.cumsum(crossings.reshape(rows, columns + 1)[:, :0:-1], axis=1)[:, ::-1]
    return np.asarray(from_right % 2 == 1)


def _crossings(polygon: Vector, rows: int) -> Iterator[tuple[NDArray[np.int64], Vector]]:
    """Return rows, and the columns at which the edges of a polygon cross them, in parts."""
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
        yield row, top[of, 0] + (row - top[of, 1]) * slope
