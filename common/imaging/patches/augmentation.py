"""Random augmentation of patches, so that a network learns anatomy instead of one scanner, pose or noise level.

Spatial transforms apply to image and label; intensity changes apply only to the image. All randomness comes from the
given generator, so the same generator state produces the same patch.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from common.imaging.patches.cropping import cut, cut_transformed
from common.imaging.resampling import thick_axes
from common.plan.augmentation import AugmentationPlan as AugmentationPlan
from common.plan.base import Axes3, Spacing

_THICK = 3.0


def augment(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    plan: AugmentationPlan,
    generator: Generator,
    patch_size: Axes3,
    start: Axes3 | None = None,
    spacing: Spacing = (1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Cut one randomly augmented patch out of a volume; :func:`flip` comes after it.

    Parameters
    ----------
    image
        (channels, x, y, z) normalised intensities; not changed.
    label
        (x, y, z); not changed.
    plan
        Probabilities and ranges of the changes.
    generator
        CPU generator; the source of all randomness.
    patch_size
        Voxels of the patch; voxels outside the volume are zero.
    start
        First voxel of the patch; None means the centre of the volume.
    spacing
        Voxel size in mm, so that rotations preserve shapes if voxels are not cubic.

    Returns
    -------
    tuple[Tensor, Tensor]
        Image (channels, *patch_size) float32 and label (*patch_size) uint8.
    """
    if start is None:
        x, y, z = ((n - p) // 2 for n, p in zip(label.shape, patch_size, strict=True))
        start = (x, y, z)
    matrix = draw_transform(plan, spacing, generator)
    if matrix is None:
        patch = torch.from_numpy(cut(image, start, patch_size))
        patch_label = torch.from_numpy(cut(label, start, patch_size))
    else:
        patch, patch_label = cut_transformed(image, label, start, patch_size, matrix)
    return change_intensities(patch, plan, spacing, generator), patch_label


def flip(
    patch: Tensor, label: Tensor, axes: Collection[int], probability: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Flip a patch and its label along each of these axes with the given probability.

    Parameters
    ----------
    patch
        Image (channels, x, y, z).
    label
        Label (x, y, z).
    axes
        Axes among 0, 1, 2 along which the anatomy may be flipped.
    probability
        From 0 to 1, drawn for each axis by itself.
    generator
        CPU generator.
    """
    flipped = [axis for axis in sorted(axes) if _happens(probability, generator)]
    if flipped:
        patch = patch.flip([axis + 1 for axis in flipped])
        label = label.flip(flipped)
    return patch, label


def draw_transform(plan: AugmentationPlan, spacing: Spacing, generator: Generator) -> NDArray[np.float64] | None:
    """Draw a rotation and a scaling as one matrix from patch to volume offsets in voxels; None for neither."""
    rotates, scales = _happens(plan.rotation, generator), _happens(plan.scaling, generator)
    if not (rotates or scales):
        return None
    matrix = np.eye(3)
    if rotates:
        for axis in range(3):
            angle = np.deg2rad(_uniform((-plan.rotation_degrees, plan.rotation_degrees), generator))
            first, second = (other for other in range(3) if other != axis)
            in_plane = (spacing[first], spacing[second])
            if max(in_plane) <= _THICK * min(in_plane):
                matrix = _rotation(angle, first, second) @ matrix
    matrix = np.diag(1 / np.array(spacing)) @ matrix @ np.diag(spacing)
    if scales:
        factor = _uniform(plan.scale, generator)
        thick = thick_axes(spacing, _THICK)
        matrix = np.diag([1.0 if axis in thick else 1 / factor for axis in range(3)]) @ matrix
    return matrix


def change_intensities(patch: Tensor, plan: AugmentationPlan, spacing: Spacing, generator: Generator) -> Tensor:
    """Draw and apply gamma, blur, low resolution and noise, in this order.

    Parameters
    ----------
    patch
        (channels, x, y, z) float32; not changed.
    plan
        Probabilities and ranges of the changes.
    spacing
        Voxel size in mm; blur has the same width in mm along all axes, and low resolution skips thick axes.
    generator
        CPU generator.

    Returns
    -------
    Tensor
        A tensor of the same shape; the patch itself if no change was drawn.
    """
    if _happens(plan.gamma, generator):
        patch = apply_gamma(patch, _uniform(plan.gamma_exponent, generator))
    if _happens(plan.blur, generator):
        sigma = _uniform(plan.blur_sigma, generator)
        patch = blur(patch, (sigma * min(spacing) / spacing[0], *(sigma * min(spacing) / s for s in spacing[1:])))
    if _happens(plan.low_resolution, generator):
        patch = lower_resolution(patch, _uniform(plan.low_resolution_factor, generator), thick_axes(spacing, _THICK))
    if _happens(plan.noise, generator):
        patch = patch + torch.randn(patch.shape, generator=generator) * _uniform(plan.noise_std, generator)
    return patch


def apply_gamma(patch: Tensor, exponent: float) -> Tensor:
    """Scale each channel to 0 to 1, raise it to a power and scale back, which keeps its minimum and maximum."""
    lowest = patch.amin((1, 2, 3), keepdim=True)
    extent = (patch.amax((1, 2, 3), keepdim=True) - lowest).clamp(min=1e-7)
    return ((patch - lowest) / extent).clamp(0, 1).pow(exponent) * extent + lowest


def blur(patch: Tensor, sigma: tuple[float, ...]) -> Tensor:
    """Blur (channels, x, y, z) by a Gaussian of ``sigma`` voxels along each axis; weights sum to 1 even at borders."""
    channels, x, y, z = patch.shape
    patch = patch @ _gaussian_matrix(z, sigma[2]).T
    patch = _gaussian_matrix(y, sigma[1]) @ patch
    return (_gaussian_matrix(x, sigma[0]) @ patch.reshape(channels, x, y * z)).reshape(channels, x, y, z)


def lower_resolution(patch: Tensor, factor: float, spared_axes: Collection[int] = ()) -> Tensor:
    """Down-sample each axis by ``factor`` with nearest-neighbour and interpolate back linearly."""
    size = [n if axis in spared_axes else max(1, round(n * factor)) for axis, n in enumerate(patch.shape[1:])]
    lower = F.interpolate(patch[None], size=size, mode="nearest-exact")
    return F.interpolate(lower, size=patch.shape[1:], mode="trilinear", align_corners=False)[0]


def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    position = torch.arange(size, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _rotation(angle: float, first: int, second: int) -> NDArray[np.float64]:
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _happens(probability: float, generator: Generator) -> bool:
    return bool(torch.rand((), generator=generator).item() < probability)


def _uniform(bounds: tuple[float, float], generator: Generator) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator).item())
