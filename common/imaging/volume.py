"""A scan in memory, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.imaging.geometry import Grid


@dataclass(frozen=True, eq=False)
class Source:
    """How a volume was stored, so that results can be written back on the very same grid.

    Attributes
    ----------
    grid
        shape and affine (mm) as stored, before reordering to RAS+.
    header
        the file's NIfTI header; None for volumes that do not come from a NIfTI file.
    """

    grid: Grid
    header: Any = None

    @property
    def orientation(self) -> str:
        """Direction of the stored array axes, e.g. ``"LAS"``."""
        return self.grid.orientation

    @property
    def orientation_declared(self) -> bool:
        """False if the header says nothing about left and right (qform and sform codes are both zero)."""
        return self.header is None or int(self.header["qform_code"]) > 0 or int(self.header["sform_code"]) > 0


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in memory.

    Attributes
    ----------
    array
        float32 (channels, x, y, z), axes in RAS+ order, C-contiguous.
    grid
        shape and affine of ``array``'s three spatial axes.
    source
        the grid as stored in the file.
    """

    array: NDArray[np.float32]
    grid: Grid
    source: Source
