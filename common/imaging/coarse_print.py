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
from dataclasses import dataclass
from itertools import product

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


def _block_means(volume: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each block's mean without its smallest and largest eighth, which a changed voxel would be in.

    An axis is cut as ``numpy.array_split`` does, so a block has one of two sizes along it, and the volume has at most
    eight kinds of blocks. All of a kind are looked at together.
    """
    axes = [_cuts(size) for size in volume.shape]
    means = np.empty([min(BLOCKS, size) for size in volume.shape], dtype=np.float64)
    for x, y, z in product(*axes):
        kind = volume[x.voxels, y.voxels, z.voxels].reshape(x.count, x.size, y.count, y.size, z.count, z.size)
        thinned = kind[:, :: x.step, :, :: y.step, :, :: z.step].transpose(0, 2, 4, 1, 3, 5)
        values = np.sort(thinned.reshape(x.count * y.count * z.count, -1), axis=1)
        cut = math.ceil(values.shape[1] / _TRIM) if values.shape[1] > 2 else 0
        kept = values[:, cut : values.shape[1] - cut].mean(axis=1, dtype=np.float64)
        means[x.blocks, y.blocks, z.blocks] = kept.reshape(x.count, y.count, z.count)
    return means.ravel()


@dataclass(frozen=True)
class _Cut:
    """Blocks of one size along an axis: which voxels and blocks, how many, and the step at which they are thinned."""

    voxels: slice
    blocks: slice
    count: int
    size: int

    @property
    def step(self) -> int:
        return math.ceil(self.size / _MOST_PER_AXIS)


def _cuts(length: int) -> list[_Cut]:
    parts = min(BLOCKS, length)
    size, larger = divmod(length, parts)
    border = larger * (size + 1)
    cuts = [
        _Cut(slice(0, border), slice(0, larger), larger, size + 1),
        _Cut(slice(border, length), slice(larger, parts), parts - larger, size),
    ]
    return [cut for cut in cuts if cut.count]
