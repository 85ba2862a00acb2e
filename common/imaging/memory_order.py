"""The order of voxels in memory."""

from __future__ import annotations

import os
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common.imaging.threads import map_in_threads

Scalar = TypeVar("Scalar", bound=np.generic)

_THREADS, _WORTH_THREADS = 2, 2**21


def in_c_order(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """Return an array (..., x, y, z) whose neighbours along z are closest in memory, and along x farthest apart.

    Slices of a scan have it the other way round, which makes the work along an axis several times slower.

    Returns
    -------
    NDArray
        The array itself, or a contiguous copy.
    """
    distances = [abs(stride) for stride in array.strides]
    if distances == sorted(distances, reverse=True):
        return array
    result = np.empty(array.shape, array.dtype)

    def copy(y: int) -> None:
        result[..., y, :] = array[..., y, :]

    # Copying from one order to the other is several times faster in planes, which fit the processor's cache.
    threads = min(_THREADS, os.cpu_count() or 1) if array.size > _WORTH_THREADS else 1
    map_in_threads(copy, range(array.shape[-2]), threads)
    return result
