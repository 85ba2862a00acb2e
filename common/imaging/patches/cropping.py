"""Cutting patches out of a volume, optionally rotated and scaled. Voxels outside the volume are zero."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.plan.base import Axes3

Scalar = TypeVar("Scalar", bound=np.generic)


def cut(array: NDArray[Scalar], start: Axes3, size: Axes3) -> NDArray[Scalar]:
    """Copy a box out of the last three axes of an array.

    Parameters
    ----------
    array
        (..., x, y, z).
    start
        First voxel of the box; it may be negative, and the box may extend beyond the array.
    size
        Voxels of the box.

    Returns
    -------
    NDArray[Scalar]
        A new (..., *size) array of the same type, zero outside the array.
    """
    box = np.zeros((*array.shape[:-3], *size), dtype=array.dtype)
    source: list[Any] = [Ellipsis]
    target: list[Any] = [Ellipsis]
    for first, length, extent in zip(start, size, array.shape[-3:], strict=True):
        low, high = max(first, 0), min(first + length, extent)
        if low >= high:
            return box
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    box[tuple(target)] = array[tuple(source)]
    return box


def cut_transformed(
    image: NDArray[np.float32], label: NDArray[np.uint8], start: Axes3, size: Axes3, matrix: NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """Cut a patch that is rotated and scaled about its centre.

    Parameters
    ----------
    image
        (channels, x, y, z), interpolated linearly.
    label
        (x, y, z), interpolated by nearest neighbour.
    start
        First voxel of the untransformed patch.
    size
        Voxels of the patch.
    matrix
        (3, 3) from offsets in the patch, in voxels from its centre, to offsets in the volume.

    Returns
    -------
    tuple[Tensor, Tensor]
        Image (channels, *size) float32 and label (*size) uint8. The identity matrix gives exactly the untransformed
        patch.
    """
    half = (np.array(size) - 1) / 2
    centre = np.array(start) + half
    # Read only the part of the volume that the patch can reach: volumes are large and on disk.
    reach = np.abs(matrix) @ half + 1
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, image.shape[1:]).astype(int)
    if np.any(low >= high):
        return torch.zeros(len(image), *size), torch.zeros(size, dtype=torch.uint8)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    grid = _sampling_grid(size, matrix, centre - low, high - low)
    values = _sample(torch.from_numpy(image[:, x, y, z].copy()), grid, "bilinear")
    labels = _sample(torch.from_numpy(label[x, y, z].astype(np.float32))[None], grid, "nearest")
    return values, labels[0].to(torch.uint8)


def _sample(values: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(values[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]


def _sampling_grid(
    size: Axes3, matrix: NDArray[np.float64], centre: NDArray[np.float64], extent: NDArray[Any]
) -> Tensor:
    """Return positions (*size, 3) in a box of ``extent`` voxels, from -1 to 1 between its outer faces, as z, y, x."""
    offsets = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    grid = torch.empty(*size, 3)
    for axis in range(3):
        scale = 2 / float(extent[axis])
        x, y, z = (offsets[other] * (float(matrix[axis, other]) * scale) for other in range(3))
        origin = float((2 * centre[axis] + 1) / extent[axis] - 1)
        grid[..., 2 - axis] = (x + origin)[:, None, None] + y[:, None] + z
    return grid
