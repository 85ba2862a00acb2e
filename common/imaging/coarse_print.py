"""Coarse prints of a scan: short hashes that nearly equal scans share, and different scans do not.

A scan keeps a print if a voxel is changed, or if it is written again with another type of numbers. It does not keep one
if it is resampled, cropped or scaled. Prints say that two scans look the same; only a digest of the voxels proves it.

The volume is cut into 4 x 4 x 4 blocks, and the trimmed mean of each block is divided by a step, an eighth to a third
of their standard deviation, and rounded. A value near a boundary could be rounded either way. So there are several
prints, with two steps and three offsets: where a single block changes by less than a third of a step, or the standard
deviation by less than a factor of 1.4, at least one print stays.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

BLOCKS = 4
OFFSETS = (1 / 6, 3 / 6, 5 / 6)
DIGITS = 16
_TRIM = 8
_MOST_PER_AXIS = 16


def coarse_prints(array: NDArray[np.float32]) -> tuple[str, ...]:
    """Return the prints of a volume, each of ``DIGITS`` hexadecimal digits; none for a volume without any contrast.

    Parameters
    ----------
    array
        Voxels, (channels, x, y, z).
    """
    means = np.array([_block_means(channel) for channel in array])
    spread = float(means.std())
    if not (math.isfinite(spread) and spread > 0):
        return ()
    octave = math.log2(spread)
    found = []
    for half, name in ((0.0, "a"), (0.5, "b")):
        exponent = math.floor(octave + half)
        steps = means / 2.0 ** (exponent - 2)
        for offset in OFFSETS:
            cells = np.floor(steps + offset).astype("<i8")
            about = f"{name} {offset:.3f} {exponent} {array.shape}".encode()
            found.append(hashlib.sha256(about + cells.tobytes()).hexdigest()[:DIGITS])
    return tuple(found)


def _block_means(volume: NDArray[np.float32]) -> list[float]:
    """Return each block's mean without its smallest and largest eighth, which a changed voxel would be in."""
    blocks = [volume]
    for axis in range(3):
        parts = min(BLOCKS, volume.shape[axis])
        blocks = [part for block in blocks for part in np.array_split(block, parts, axis)]
    found = []
    for block in blocks:
        thinned = block[tuple(slice(None, None, math.ceil(size / _MOST_PER_AXIS)) for size in block.shape)]
        values = np.sort(thinned, axis=None).astype(np.float64)
        cut = math.ceil(values.size / _TRIM) if values.size > 2 else 0
        found.append(float(values[cut : values.size - cut].mean()))
    return found
