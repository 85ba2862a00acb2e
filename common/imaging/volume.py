"""A scan in memory and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.imaging.geometry import Grid


@dataclass(frozen=True, eq=False)
class Source:
    """How a volume was stored, so that results can be written on the same grid.

    Attributes
    ----------
    grid
        Shape and affine (mm) as stored, before reordering to RAS+.
    header
        The file's NIfTI header; None for volumes that do not come from a NIfTI file.
    """

    grid: Grid
    header: Any = None

    @property
    def orientation(self) -> str:
        """Direction of the stored array axes, e.g. ``"LAS"``."""
        return self.grid.orientation

    @property
    def orientation_declared(self) -> bool:
        """False if the header does not define left and right (qform and sform codes are both zero)."""
        return self.header is None or int(self.header["qform_code"]) > 0 or int(self.header["sform_code"]) > 0


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in memory.

    Attributes
    ----------
    array
        Float32 (channels, x, y, z), axes in RAS+ order; see ``in_c_order`` for their order in memory.
    grid
        Shape and affine of ``array``'s three spatial axes.
    source
        The grid as stored in the file.
    """

    array: NDArray[np.float32]
    grid: Grid
    source: Source
