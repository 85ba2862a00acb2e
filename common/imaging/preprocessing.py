"""Preprocessing of volumes for the network, and the way back for predictions.

The steps in order: crop to the nonzero bounding box, clip and normalise intensities, resample. Padding to the patch
size comes later, after normalisation, with zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.formatting import counted
from common.imaging.memory_order import in_c_order
from common.imaging.resampling import resample_label, resample_to_shape, resampled_shape, thick_axes
from common.system.memory import require_memory

if TYPE_CHECKING:
    from common.imaging.geometry import Grid
    from common.imaging.volume import Volume
    from common.plan.base import Axes3, Spacing
    from common.plan.plan import IntensityPlan, PreprocessingPlan

_BACKGROUND = 0


@dataclass(frozen=True)
class PreprocessedGeometry:
    """Geometry of a preprocessed array, needed to map a prediction back to the volume.

    Attributes
    ----------
    grid
        The volume's RAS+ grid before preprocessing.
    crop_start
        First voxel of the crop along x, y, z.
    crop_stop
        One past the last voxel of the crop.
    shape
        Voxels of the preprocessed array.
    spacing
        Its spacing in mm: the cropped extent divided by ``shape``, so it may differ slightly from the target.
    nearest_axes
        Axes with thick slices, which are resampled by nearest neighbour.
    """

    grid: Grid
    crop_start: Axes3
    crop_stop: Axes3
    shape: Axes3
    spacing: Spacing
    nearest_axes: tuple[int, ...]

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """The crop of the RAS+ grid as slices along x, y, z."""
        x, y, z = (slice(a, b) for a, b in zip(self.crop_start, self.crop_stop, strict=True))
        return (x, y, z)

    @property
    def cropped_shape(self) -> Axes3:
        """Voxels of the crop before resampling."""
        x, y, z = (b - a for a, b in zip(self.crop_start, self.crop_stop, strict=True))
        return (x, y, z)


@dataclass(frozen=True)
class Preprocessed:
    """An image ready for the network, (channels, x, y, z) float32, and its geometry."""

    image: NDArray[np.float32]
    geometry: PreprocessedGeometry


def preprocess_image(volume: Volume, plan: PreprocessingPlan) -> Preprocessed:
    """Crop, normalise and resample a volume.

    Raises
    ------
    ValueError
        If the volume does not have one channel per entry of ``plan.intensity``.
    MemoryLimitError
        If the result would not fit into memory.
    """
    if len(volume.array) != len(plan.intensity):
        raise ValueError(
            f"the scan has {counted(len(volume.array), 'channel')}, the plan expects {len(plan.intensity)}"
        )
    geometry = plan_geometry(volume, plan)
    _require_memory(geometry, len(volume.array))
    cropped = in_c_order(volume.array[(slice(None), *geometry.crop)])
    channels = zip(cropped, plan.intensity, strict=True)
    normalised = np.stack([normalise_intensity(channel, intensity) for channel, intensity in channels])
    image = resample_to_shape(normalised, geometry.shape, plan.image_order, geometry.nearest_axes)
    return Preprocessed(image, geometry)


def require_room(volume: Volume, plan: PreprocessingPlan) -> None:
    """Check, without preprocessing, that the preprocessed volume would fit into memory.

    Raises
    ------
    MemoryLimitError
        If it would not.
    """
    _require_memory(plan_geometry(volume, plan), len(volume.array))


def preprocess_label(
    label: NDArray[np.uint8], geometry: PreprocessedGeometry, plan: PreprocessingPlan
) -> NDArray[np.uint8]:
    """Crop and resample a label map (x, y, z) from the volume's RAS+ grid to the grid of the preprocessed image."""
    cropped = label[geometry.crop]
    return np.ascontiguousarray(resample_label(cropped, geometry.shape, plan.label_mode, geometry.nearest_axes))


def restore_prediction(class_scores: NDArray[np.float32], geometry: PreprocessedGeometry) -> NDArray[np.uint8]:
    """Convert scores on the preprocessed grid to a label map on the volume's RAS+ grid.

    Scores are resampled linearly one class at a time, so that only two other full-size float arrays exist. The class
    with the highest score wins, the first in case of ties; everything outside the crop is background.

    Parameters
    ----------
    class_scores
        (classes, x, y, z) float32: logits or probabilities, background first, 2 to 256 classes.
    geometry
        Geometry of the preprocessed image that was predicted.

    Returns
    -------
    NDArray[np.uint8]
        (x, y, z) uint8.
    """
    _check_scores(class_scores, geometry)
    best = _restore_class(class_scores[0], geometry).copy()
    labels = np.zeros(geometry.cropped_shape, dtype=np.uint8)
    for value in range(1, len(class_scores)):
        score = _restore_class(class_scores[value], geometry)
        wins = score > best
        np.copyto(best, score, where=wins)
        np.copyto(labels, np.uint8(value), where=wins)
    result = np.full(geometry.grid.shape, _BACKGROUND, dtype=np.uint8)
    result[geometry.crop] = labels
    return result


def restore_probabilities(probabilities: NDArray[np.float32], geometry: PreprocessedGeometry) -> NDArray[np.float32]:
    """Resample probabilities (classes, x, y, z) to the volume's RAS+ grid; outside the crop, background is 1."""
    _check_scores(probabilities, geometry)
    result = np.zeros((len(probabilities), *geometry.grid.shape), dtype=np.float32)
    result[_BACKGROUND] = 1
    for value, scores in enumerate(probabilities):
        result[value][geometry.crop] = _restore_class(scores, geometry)
    return result


def normalise_intensity(channel: NDArray[np.float32], plan: IntensityPlan) -> NDArray[np.float32]:
    """Clip and normalise one channel; with ``volume``, a constant channel becomes zero.

    Parameters
    ----------
    channel
        (x, y, z) float32 in stored units; not changed.
    plan
        Clipping and normalisation. Percentiles, and mean and standard deviation for ``volume``, come from ``channel``.

    Returns
    -------
    NDArray[np.float32]
        A new (x, y, z) float32 array.
    """
    if plan.clip == "window":
        result = np.clip(channel, plan.lower, plan.upper)
    elif plan.clip == "percentile":
        lower, upper = np.percentile(channel, (plan.lower, plan.upper))
        result = np.clip(channel, lower, upper)
    else:
        result = channel.astype(np.float32)
    if plan.normalise == "volume":
        if result.min() == result.max():
            return np.zeros_like(result)
        # If values are large and their spread is small, a float32 mean would be off by a part of that spread.
        result -= result.mean(dtype=np.float64)
        result /= result.std(dtype=np.float64)
    elif plan.normalise == "given":
        result -= plan.mean
        result /= plan.std
    return result.astype(np.float32, copy=False)


def nonzero_box(image: NDArray[np.float32]) -> tuple[Axes3, Axes3]:
    """Return start and stop of the bounding box of nonzero voxels in any channel of (channels, x, y, z).

    If all voxels are zero, the box is the whole volume.
    """
    mask = np.any(image != 0, axis=0)
    if not mask.any():
        return (0, 0, 0), (mask.shape[0], mask.shape[1], mask.shape[2])
    occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    start, stop = [int(o[0]) for o in occupied], [int(o[-1]) + 1 for o in occupied]
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def plan_geometry(volume: Volume, plan: PreprocessingPlan) -> PreprocessedGeometry:
    """Determine crop, shape and thick axes for a volume."""
    spacing = volume.grid.spacing
    start, stop = (0, 0, 0), volume.grid.shape
    if plan.crop == "nonzero":
        start, stop = nonzero_box(volume.array)
    cropped = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
    target = plan.spacing or spacing
    shape = resampled_shape(cropped, spacing, target)
    x, y, z = (n * s / m for n, s, m in zip(cropped, spacing, shape, strict=True))
    thick = {*thick_axes(spacing, plan.anisotropy), *thick_axes(target, plan.anisotropy)}
    return PreprocessedGeometry(volume.grid, start, stop, shape, (x, y, z), tuple(sorted(thick)))


def _require_memory(geometry: PreprocessedGeometry, channels: int) -> None:
    """Count the normalised crop, the resampled image and the matrices between them."""
    old, new = geometry.cropped_shape, geometry.shape
    voxels = math.prod(old) + (math.prod(new) if new != old else 0)
    linear = [axis for axis in range(3) if new[axis] != old[axis] and axis not in geometry.nearest_axes]
    wanted = 4 * channels * voxels + sum(12 * new[axis] * old[axis] for axis in linear)
    spacing = " x ".join(f"{mm:.4g}" for mm in geometry.grid.spacing)
    what = f"the scan resampled from voxels of {spacing} mm to {' x '.join(map(str, new))} voxels"
    require_memory(wanted, what, "is its voxel size true? Else crop it, or use a coarser preprocessing.spacing")


def _restore_class(scores: NDArray[np.float32], geometry: PreprocessedGeometry) -> NDArray[np.float32]:
    return resample_to_shape(scores, geometry.cropped_shape, 1, geometry.nearest_axes)


def _check_scores(class_scores: NDArray[np.float32], geometry: PreprocessedGeometry) -> None:
    if class_scores.shape[1:] != geometry.shape:
        raise ValueError(f"scores have shape {class_scores.shape[1:]}, the preprocessed image {geometry.shape}")
    if not 2 <= len(class_scores) <= 256:
        raise ValueError(f"{len(class_scores)} classes do not fit a uint8 label map: 2 to 256 do")
