"""Contours of structure sets, filled on the slices of their series."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from common.formatting import counted
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.labels.header import instances, items
from common.imaging.io.dicom.labels.objects import LabelObject, Segment
from common.imaging.io.dicom.labels.painting import Lattice, Painter
from common.imaging.io.dicom.labels.polygons import ContourError, fill
from common.imaging.io.dicom.slices import RefusedError, Series, shown
from common.imaging.io.dicom.values import numbers, text, whole

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_FEWEST_POINTS = 3
_MOST_OUTSIDE = 1.0
"""Pixels from the outermost centres: contours may leave the image, which ends after half a pixel, by another half."""
_DIGITS = 4
Points = NDArray[np.float64]


def paint_structure_set(
    one: LabelObject, values: Mapping[int, int], series: Series, lattice: Lattice, painter: Painter
) -> None:
    """Paint the labels of a structure set.

    A pixel belongs to a region if its centre lies within the region's contours on its slice; see ``fill``.

    Parameters
    ----------
    one
        Its header.
    values
        Number of a region -> value of the label; other regions are not read.
    series
        The series that it is about.
    lattice
        Its voxels.
    painter
        Gets the labels.

    Raises
    ------
    DataError
        The file cannot be read, a contour is no area on a slice of the series, or a region fills no pixel.
    """
    with refused_as_damaged(one.path, "structure set"):
        dataset = pydicom.dcmread(one.path, force=True, specific_tags=["ROIContourSequence"])
        regions = {segment.number: segment for segment in one.segments}
        seen = set[int]()
        for item in items(dataset, "ROIContourSequence"):
            number = whole(item, "ReferencedROINumber")
            if number is None or number not in values:
                continue
            region = regions[number]
            if number in seen:
                raise RefusedError(f"has contours of {region.title} in two places")
            seen.add(number)
            _require_references(item, region, series)
            _paint_region(_polygons(item, region, lattice), region, values[number], painter)


def _paint_region(polygons: Mapping[int, list[Points]], region: Segment, value: int, painter: Painter) -> None:
    columns, rows, _ = painter.label.shape
    filled = False
    for level, found in polygons.items():
        try:
            mask = fill(found, rows, columns)
        except ContourError as error:
            raise RefusedError(
                f"has contours of {region.title} on slice {level + 1} that {error}: correct them"
            ) from None
        filled = filled or bool(mask.any())
        painter.paint(painter.label[:, :, level].T, mask, value, level)
    if polygons and not filled:
        raise RefusedError(f"has contours of {region.title} that fill no pixel")


def _require_references(item: Dataset, region: Segment, series: Series) -> None:
    """Refuse contours that say they were drawn on images of another series."""
    for contour in items(item, "ContourSequence"):
        if not series.uids.issuperset(instances(contour, "ContourImageSequence")):
            raise RefusedError(f"has a contour of {region.title} that refers to instances outside of its series")


def _polygons(item: Dataset, region: Segment, lattice: Lattice) -> dict[int, list[Points]]:
    """Return a region's contours (n, 2) as columns and rows, by slice."""
    found: dict[int, list[Points]] = {}
    for contour in items(item, "ContourSequence"):
        kind = text(contour, "ContourGeometricType")
        if kind not in _AREAS:
            raise RefusedError(f"has a contour of {region.title} that is no area ({shown(kind) or 'of no type'})")
        count = whole(contour, "NumberOfContourPoints") or 0
        data = numbers(contour, "ContourData", 3 * count)
        if data is None:
            raise RefusedError(f"has a contour of {region.title} without points")
        if count < _FEWEST_POINTS:
            raise RefusedError(f"has a contour of {region.title} that is no area ({counted(count, 'point')})")
        places = lattice.indices(np.array(data).reshape(-1, 3))
        level = float(np.rint(places[0, 2]))
        off = float(np.abs(places[:, 2] - level).max())
        if off > lattice.tolerance[2] or not 0 <= level < lattice.shape[2]:
            raise RefusedError(f"has a contour of {region.title} that lies on no slice of its series")
        if (places[:, :2] < -_MOST_OUTSIDE).any() or (
            places[:, :2] > np.array(lattice.shape[:2]) - 1 + _MOST_OUTSIDE
        ).any():
            raise RefusedError(
                f"has a contour of {region.title} that lies outside of the image on slice {int(level) + 1}"
            )
        # Rounded, so that contours through centres of pixels are exactly there.
        found.setdefault(int(level), []).append(np.round(places[:, :2], _DIGITS))
    return found
