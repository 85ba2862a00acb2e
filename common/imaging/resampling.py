"""Resampling of volumes and label maps to another number of voxels over the same physical extent.

Both grids share their outer corners, not their first and last voxel centres: voxel ``i`` of ``m`` lies at
``(i + 0.5) * n / m - 0.5`` in a grid of ``n`` voxels (``scipy.ndimage.zoom`` with ``grid_mode=True``). Repeated
resampling therefore never shifts a volume. Beyond its outermost voxels a volume is extended by its mirror image
(``mode="reflect"`` in SciPy).

Linear and cubic interpolation on a regular grid are separable, so each axis takes one matrix product. The result
equals the three-dimensional spline and is much faster than evaluating 64 terms per voxel. Down-sampling does not smooth
first, so it preserves noise and thin structures.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from common.plan.base import Axes3, Spacing

Order = Literal[1, 3]


def resampled_shape(shape: Axes3, spacing: Spacing, target: Spacing) -> Axes3:
    """Return the voxels along each axis that keep the extent at another spacing, rounded, at least one."""
    x, y, z = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))
    return (x, y, z)


def thick_axes(spacing: Spacing, anisotropy: float) -> tuple[int, ...]:
    """Return the axes whose spacing is more than ``anisotropy`` times the finest."""
    return tuple(axis for axis, s in enumerate(spacing) if s > anisotropy * min(spacing))


def resample_to_shape(
    image: NDArray[np.float32], shape: Axes3, order: Order, nearest_axes: Collection[int] = ()
) -> NDArray[np.float32]:
    """Resample the last three axes of an image to a given shape.

    Parameters
    ----------
    image
        (..., x, y, z) float32; leading axes such as channels are kept.
    shape
        Target voxels along x, y, z.
    order
        1 for linear, 3 for cubic B-spline interpolation (Unser, "Splines: a perfect fit", 1999).
    nearest_axes
        Axes among 0, 1, 2 that use nearest-neighbour interpolation instead.

    Returns
    -------
    NDArray[np.float32]
        (..., *shape) float32, contiguous; the image itself if it already has this form.
    """
    wanted = [axis for axis in range(3) if image.shape[axis - 3] != shape[axis]]
    # The axis that shrinks most goes first, to reduce the work on the others.
    for axis in sorted(wanted, key=lambda axis: shape[axis] / image.shape[axis - 3]):
        old, new = image.shape[axis - 3], shape[axis]
        if axis in nearest_axes:
            image = np.take(image, nearest_indices(old, new), axis=axis - 3)
        else:
            image = _multiply_along(interpolation_matrix(old, new, order), image, axis)
    return np.ascontiguousarray(image)


def resample_label(
    label: NDArray[np.uint8], shape: Axes3, mode: Literal["nearest", "linear"], nearest_axes: Collection[int] = ()
) -> NDArray[np.uint8]:
    """Resample a label map to a given shape.

    Parameters
    ----------
    label
        (x, y, z) uint8.
    shape
        Target voxels along x, y, z.
    mode
        ``nearest``, or ``linear``: every label's mask is interpolated linearly and the largest value wins. Ties go to
        the higher label, so that a thin structure survives halving the resolution.
    nearest_axes
        Axes that use nearest-neighbour interpolation in either mode.

    Returns
    -------
    NDArray[np.uint8]
        Label map of the target shape, uint8; the map itself if it already has that shape.
    """
    if label.shape == shape:
        return label
    if mode == "nearest":
        x, y, z = (nearest_indices(old, new) for old, new in zip(label.shape, shape, strict=True))
        return label[np.ix_(x, y, z)]
    present = np.flatnonzero(np.bincount(label.ravel(), minlength=1))
    result = np.full(shape, present[0], dtype=np.uint8)
    best = np.full(shape, -1, dtype=np.float32)
    for value in present:
        score = resample_to_shape((label == value).astype(np.float32), shape, 1, nearest_axes)
        # Sums of the same weights in another order differ in the last bits: treat them as equal.
        wins = score >= best - 1e-6
        np.copyto(best, score, where=wins)
        np.copyto(result, np.uint8(value), where=wins)
    return result


def nearest_indices(old: int, new: int) -> NDArray[np.int64]:
    """Return for each of ``new`` voxels the index of the one among ``old`` that contains its centre."""
    return ((2 * np.arange(new) + 1) * old) // (2 * new)


@lru_cache(maxsize=64)
def interpolation_matrix(old: int, new: int, order: Order) -> NDArray[np.float32]:
    """Return the matrix that interpolates ``old`` samples at the centres of ``new`` voxels over the same extent.

    Returns
    -------
    NDArray[np.float32]
        (new, old) float32, read-only; rows add up to 1.
    """
    positions = (np.arange(new) + 0.5) * old / new - 0.5
    weights = _basis_matrix(positions, old, order)
    if order == 3:
        # A cubic spline does not pass through its coefficients: solve for those that reproduce the samples.
        at_samples = _basis_matrix(np.arange(old, dtype=np.float64), old, order)
        weights = np.asarray(np.linalg.solve(at_samples.T, weights.T).T, dtype=np.float64)
    matrix = np.ascontiguousarray(weights, dtype=np.float32)
    matrix.setflags(write=False)
    return matrix


def _basis_matrix(positions: NDArray[np.float64], size: int, order: Order) -> NDArray[np.float64]:
    """Evaluate the B-splines centred on each sample, mirrored at the ends: (positions, size)."""
    first = np.floor(positions).astype(np.int64) - (order - 1) // 2
    matrix = np.zeros((len(positions), size))
    rows = np.arange(len(positions))
    for step in range(order + 1):
        column = first + step
        distance = np.abs(positions - column)
        folded = column % (2 * size)
        folded = np.where(folded < size, folded, 2 * size - 1 - folded)
        np.add.at(matrix, (rows, folded), _b_spline(distance, order))
    return matrix


def _b_spline(distance: NDArray[np.float64], order: Order) -> NDArray[np.float64]:
    if order == 1:
        return np.maximum(1 - distance, 0)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far)


def _multiply_along(matrix: NDArray[np.float32], image: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Multiply every line of the image along one of its last three axes by the matrix."""
    lines = np.moveaxis(image, axis - 3, -1)
    # One large product: many small ones would spend their time starting and stopping threads.
    product = lines.reshape(-1, lines.shape[-1]) @ matrix.T
    return np.moveaxis(product.reshape(*lines.shape[:-1], len(matrix)), -1, axis - 3)
