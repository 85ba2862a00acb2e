"""Contours of structure sets, filled on the slices of their series."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from common.imaging.geometry import Grid
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.labels.header import items
from common.imaging.io.dicom.labels.objects import LabelObject, Segment
from common.imaging.io.dicom.labels.painting import Lattice, Painter
from common.imaging.io.dicom.labels.polygons import fill
from common.imaging.io.dicom.slices import RefusedError, shown
from common.imaging.io.dicom.values import numbers, text, whole

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_FARTHEST = 1e6
"""Voxels; what is farther away is no contour of this series."""


def paint_structure_set(one: LabelObject, values: Mapping[int, int], grid: Grid, painter: Painter) -> None:
    """Paint the labels of a structure set.

    A pixel belongs to a region if its centre lies within an odd number of the region's contours on its slice.

    Parameters
    ----------
    one
        Its header.
    values
        Number of a region -> value of the label; other regions are not read.
    grid
        Grid of the series: columns, rows, slices.
    painter
        Gets the labels.

    Raises
    ------
    DataError
        The file cannot be read, or a contour is no area on a slice of the series.
    """
    with refused_as_damaged(one.path, "structure set"):
        dataset = pydicom.dcmread(one.path, force=True, specific_tags=["ROIContourSequence"])
        regions = {segment.number: segment for segment in one.segments}
        lattice, seen = Lattice(grid), set[int]()
        columns, rows, _ = grid.shape
        for item in items(dataset, "ROIContourSequence"):
            number = whole(item, "ReferencedROINumber")
            if number is None or number not in values:
                continue
            if number in seen:
                raise RefusedError(f"has contours of {regions[number].title} in two places")
            seen.add(number)
            for level, polygons in _polygons(item, regions[number], grid, lattice).items():
                mask = fill(polygons, rows, columns)
                painter.paint(painter.label[:, :, level].T, mask, values[number])


def _polygons(item: Dataset, region: Segment, grid: Grid, lattice: Lattice) -> dict[int, list[NDArray[np.float64]]]:
    """Return a region's contours (n, 2) as columns and rows, by slice."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    for contour in items(item, "ContourSequence"):
        kind = text(contour, "ContourGeometricType")
        if kind not in _AREAS:
            raise RefusedError(f"has a contour of {region.title} that is no area ({shown(kind) or 'of no type'})")
        count = whole(contour, "NumberOfContourPoints") or 0
        data = numbers(contour, "ContourData", 3 * count)
        if data is None:
            raise RefusedError(f"has a contour of {region.title} without points")
        places = lattice.indices(np.array(data).reshape(-1, 3))
        level = float(np.rint(places[0, 2]))
        off = float(np.abs(places[:, 2] - level).max())
        if off > lattice.tolerance[2] or not 0 <= level < grid.shape[2] or np.abs(places).max() > _FARTHEST:
            raise RefusedError(f"has a contour of {region.title} that lies on no slice of its series")
        found.setdefault(int(level), []).append(places[:, :2])
    return found
