"""A series as a volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.geometry import reorient_from_ras
from common.imaging.io.dicom.pixels import scale, stored_frames
from common.imaging.io.dicom.slices import Series, Slice
from common.imaging.io.dicom.tilt import UPRIGHT, straighten
from common.imaging.threads import map_in_threads
from common.imaging.volume import Source, Volume
from common.system.memory import MemoryLimitError, require_memory

_SLICES_AT_ONCE = 16
"""Files are contiguous along columns, volumes along slices. Copying from one order to the other is faster for many
slices at once, as long as they fit the processor's cache."""
_SPREAD = 16
"""Values between slices in memory: at distances of powers of two they would push each other out of that cache."""
_COLUMNS, _THREADS, _WORTH_THREADS = 64, 2, 2**20


def read_series(series: Series) -> Volume:
    """Read the pixels of a series.

    Returns
    -------
    Volume
        One channel in RAS+. Values are scaled by each slice's slope and intercept; padding has the lowest value of the
        image. ``Volume.source`` has columns, rows and slices as axes.

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
    array = np.empty((1, *shape), dtype=np.float32)
    # Indexed by column, row and slice.
    view = reorient_from_ras(array[0], series.grid)
    if series.shift == UPRIGHT:
        _read(view, series)
    else:
        form = series.slices[0].form
        stack = np.empty((form.columns, form.rows, len(series.slices)), dtype=np.float32)
        _read(stack, series)
        straighten(stack, series.shift, float(stack.min()), view)
    return Volume(array, series.grid.to_ras(), Source(series.grid))


def _read(view: NDArray[np.float32], series: Series) -> None:
    """Write all voxels to ``view`` (columns, rows, slices)."""
    lowest = _fill(view, series.slices)
    if lowest is not None:
        if not np.isfinite(lowest):
            raise DataError(series.folder, f"{series.title}: holds nothing but padding")
        for index in range(view.shape[2]):
            plane = view[:, :, index]
            plane[np.isnan(plane)] = lowest


def _fill(view: NDArray[np.float32], slices: tuple[Slice, ...]) -> float | None:
    """Write all slices; return the lowest value if there is padding, which then is NaN."""
    rows, columns = slices[0].form.rows, slices[0].form.columns
    spread = np.empty((min(_SLICES_AT_ONCE, len(slices)), rows * columns + _SPREAD), dtype=np.float32)
    block = spread[:, : rows * columns].reshape(-1, rows, columns)
    padded, lowest = False, np.inf
    done = 0
    for index, (one, values) in enumerate(zip(slices, stored_frames(slices), strict=True)):
        target = block[index - done]
        has_padding = scale(values, one, target)
        padded |= has_padding
        if one.form.padding is not None:
            lowest = min(lowest, float(np.min(target, where=~np.isnan(target), initial=np.inf)))
        if index + 1 - done == len(block) or index + 1 == len(slices):
            _transpose(block[: index + 1 - done], view[:, :, done : index + 1])
            done = index + 1
    return lowest if padded else None


def _transpose(block: NDArray[np.float32], view: NDArray[np.float32]) -> None:
    """Copy slices (slices, rows, columns) to a part of a volume (columns, rows, slices)."""

    def copy(part: slice) -> None:
        view[part] = block[:, :, part].transpose(2, 1, 0)

    columns = view.shape[0]
    parts = [slice(start, start + _COLUMNS) for start in range(0, columns, _COLUMNS)]
    map_in_threads(copy, parts, _THREADS if block.size > _WORTH_THREADS else 1)
