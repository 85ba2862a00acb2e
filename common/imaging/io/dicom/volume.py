"""A series as a volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.geometry import reorient_from_ras, reorient_to_ras
from common.imaging.io.dicom.pixels import scale, stored_frames
from common.imaging.io.dicom.slices import Series
from common.imaging.io.dicom.tilt import UPRIGHT, straighten
from common.imaging.volume import Source, Volume
from common.system.memory import MemoryLimitError, require_memory


def read_series(series: Series) -> Volume:
    """Read the pixels of a series.

    Returns
    -------
    Volume
        One channel in RAS+, in memory as the slices were stored. Values are scaled by each slice's slope and intercept;
        padding has the lowest value of the image. ``Volume.source`` has columns, rows and slices as axes.

    Raises
    ------
    DataError
        The series was refused, a file cannot be read or decoded, or it does not fit into memory.
    """
    if series.grid is None or series.refusal:
        raise DataError(series.folder, f"{series.title}: {series.refusal}")
    shape = series.grid.to_ras().shape
    try:
        require_memory(4 * int(np.prod(shape)), f"a volume of {' x '.join(map(str, shape))} voxels", "crop it")
    except MemoryLimitError as error:
        raise DataError(series.folder, f"{series.title}: {error}") from error
    form = series.slices[0].form
    stack = np.empty((len(series.slices), form.rows, form.columns), dtype=np.float32)
    _fill(stack, series)
    stored = stack.transpose(2, 1, 0)
    if series.shift == UPRIGHT:
        # A view of the slices as they were read: most users crop or resample anyway, and need no copy in RAS order.
        array = reorient_to_ras(stored, series.grid)
    else:
        array = np.empty(shape, dtype=np.float32)
        straighten(stored, series.shift, float(stack.min()), reorient_from_ras(array, series.grid))
    return Volume(array[None], series.grid.to_ras(), Source(series.grid))


def _fill(stack: NDArray[np.float32], series: Series) -> None:
    """Write the scaled values of all slices to ``stack`` (slices, rows, columns)."""
    padded, lowest = [], np.inf
    for one, values, plane in zip(series.slices, stored_frames(series.slices), stack, strict=True):
        if scale(values, one, plane):
            padded.append(plane)
        if one.form.padding is not None:
            lowest = min(lowest, float(np.min(plane, where=~np.isnan(plane), initial=np.inf)))
    if padded and not np.isfinite(lowest):
        raise DataError(series.folder, f"{series.title}: holds nothing but padding")
    for plane in padded:
        plane[np.isnan(plane)] = lowest
