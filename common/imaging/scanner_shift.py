"""Simulated scanner differences between sites: contrast, shading, noise and resolution.

They change the images of a simulated site, but not its anatomy or labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.plan.base import Axes3, Spacing
from common.plan.scanner_shift import ScannerShift

_FWHM_PER_SIGMA = 2.3548200450309493  # 2 sqrt(2 ln 2): full width at half maximum of a Gaussian
_FIELD_ORDER = 3  # cosines per axis in a smooth field: at most one full wave across the volume


def apply_scanner_shift(
    image: NDArray[np.float32], spacing: Spacing, shift: ScannerShift, seed: int
) -> NDArray[np.float32]:
    """Simulate a scanner on an image.

    Parameters
    ----------
    image
        Float32 (channels, x, y, z) in any unit; each channel has its own range, all share one bias field.
    spacing
        Voxel size in mm along x, y, z.
    shift
        The scanner's difference.
    seed
        Seed of the bias field and the noise; use one per scan. The same seed gives the same result.

    Returns
    -------
    NDArray[np.float32]
        A new float32 array of the same shape.
    """
    shifted = np.array(image, dtype=np.float32)
    field = None
    if shift.bias_field > 0:
        drawn = smooth_field(_axes3(shifted.shape[1:]), np.random.default_rng([seed, 0]))
        field = np.float32(1) + np.float32(shift.bias_field) * drawn
    noise = np.random.default_rng([seed, 1])
    for channel in shifted:
        if shift.resolution_mm is not None:
            channel[...] = _blur(channel, spacing, shift.resolution_mm)
        lowest, highest = channel.min(), channel.max()
        span = highest - lowest
        if span > 0:
            channel -= lowest
            channel /= span
            if shift.gamma != 1:
                np.power(channel, np.float32(shift.gamma), out=channel)
            if field is not None:
                channel *= field
            if shift.noise > 0:
                channel += np.float32(shift.noise) * noise.standard_normal(channel.shape, dtype=np.float32)
            channel *= span
            channel += lowest
        channel *= np.float32(shift.scale)
        channel += np.float32(shift.offset)
    return shifted


def smooth_field(shape: Axes3, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw a random sum of a few low-frequency cosines, float32 (x, y, z), scaled to a largest magnitude of 1."""
    coefficients = generator.standard_normal((_FIELD_ORDER,) * 3)
    coefficients[0, 0, 0] = 0.0  # a constant would change the scale, not the shading
    waves = [np.cos(np.pi * np.outer(np.arange(_FIELD_ORDER), (np.arange(size) + 0.5) / size)) for size in shape]
    field = np.einsum("abc,ax,by,cz->xyz", coefficients, *waves, optimize=True)
    return np.asarray(field / np.abs(field).max(), dtype=np.float32)


def _blur(channel: NDArray[np.float32], spacing: Spacing, resolution_mm: float) -> NDArray[np.float32]:
    """Widen the point spread from one voxel to the given resolution, on axes with smaller voxels."""
    from scipy import ndimage  # imported late, so that importing this module stays fast

    sigmas = [np.sqrt(max(0.0, resolution_mm**2 - step**2)) / _FWHM_PER_SIGMA / step for step in spacing]
    return np.asarray(ndimage.gaussian_filter(channel, sigmas, mode="nearest"), dtype=np.float32)


def _axes3(shape: tuple[int, ...]) -> Axes3:
    x, y, z = shape
    return (x, y, z)
