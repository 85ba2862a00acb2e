"""From files with labels to the label map of a series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.geometry import Grid, reorient_to_ras
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.labels.meaning import assign
from common.imaging.io.dicom.labels.objects import LabelObject, Overlap, Structure, listed
from common.imaging.io.dicom.labels.painting import Lattice, Painter
from common.imaging.io.dicom.labels.segmentation import paint_segmentation
from common.imaging.io.dicom.labels.structure_set import paint_structure_set
from common.imaging.io.dicom.slices import Series, shown
from common.imaging.io.dicom.tilt import UPRIGHT, straighten_label
from common.system.memory import MemoryLimitError, require_memory


def read_label_map(
    series: Series,
    objects: Sequence[LabelObject],
    structures: Sequence[Structure],
    overlap: Overlap,
    tell: Callable[[str], None] | None = None,
) -> tuple[NDArray[np.uint8], Grid]:
    """Read the label map of a series.

    Parameters
    ----------
    series
        The series.
    objects
        Segmentation objects and structure sets that are about it.
    structures
        The labels; segments that are none of them are not read.
    overlap
        What becomes of voxels with two labels.
    tell
        Called with what is odd about the labels, and no error.

    Returns
    -------
    tuple[NDArray[np.uint8], Grid]
        Label map (x, y, z) in RAS+ order, and its grid, which is that of ``read_series``. Slices of a tilted gantry are
        moved as the image's are, each to the nearest pixels.

    Raises
    ------
    DataError
        A file cannot be read, does not fit the series, or contradicts another.
    """
    first = objects[0].path
    if series.grid is None:
        raise DataError(series.folder, f"{series.title}: {series.refusal}")
    with refused_as_damaged(first, "labels"):
        assigned = assign(objects, structures)
        shape = series.grid.shape
        try:
            require_memory(2 * int(np.prod(shape)), f"a label map of {' x '.join(map(str, shape))} voxels", "crop it")
        except MemoryLimitError as error:
            raise DataError(first, str(error)) from error
        form = series.slices[0].form
        lattice = Lattice(series.grid, (form.columns, form.rows), series.shift)
        painter = Painter(lattice.shape)
    for one, values in zip(objects, assigned.values, strict=True):
        if one.kind == "RTSTRUCT":
            paint_structure_set(one, values, series, lattice, painter)
        else:
            paint_segmentation(one, values, series, lattice, painter)
    if overlap == "refuse":
        with refused_as_damaged(objects[-1].path, "labels"):
            painter.require_no_overlaps()
    if tell is not None:
        for text in _oddities(painter, {one.value: one.name for one in structures}, overlap):
            tell(text)
    label = painter.label if series.shift == UPRIGHT else straighten_label(painter.label, series.shift)
    return np.ascontiguousarray(reorient_to_ras(label, series.grid)), series.grid.to_ras()


def _oddities(painter: Painter, names: Mapping[int, str], overlap: Overlap) -> Iterator[str]:
    for value, drawn, slices in painter.sparse():
        yield (
            f"label {value} ({shown(names[value])}) is on {drawn:,} of {slices:,} slices from its first to its last: "
            "what lies between is background"
        )
    if overlap == "tell" and (pairs := painter.overlaps()):
        texts = listed(f"'{shown(names[one])}' and '{shown(names[other])}'" for one, other in pairs)
        yield (
            f"segments overlap: {texts}. For a federation with both as labels, correct them or let the later win "
            "(dicom: {overlap: later} in site.yaml)"
        )
