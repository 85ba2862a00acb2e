"""Masks of one structure each, as one label map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.formatting import counted
from common.imaging.geometry import Grid
from common.imaging.io.nifti import grid_problem, read_label


def read_masks(masks: Sequence[tuple[int, Path]]) -> tuple[NDArray[np.uint8], Grid]:
    """Read the masks of a scan.

    Parameters
    ----------
    masks
        Value of a structure in the label map, and the file in which it is 1 and all else 0; at least one.

    Returns
    -------
    tuple[NDArray[np.uint8], Grid]
        Label map (x, y, z) in RAS+ order, and its grid.

    Raises
    ------
    DataError
        A mask cannot be read, holds other values, is on another grid than the first, or has voxels in common with
        another one.
    """
    first = masks[0][1]
    joined, grid = read_label(first)
    _require_mask(joined, first)
    joined *= np.uint8(masks[0][0])
    for value, path in masks[1:]:
        mask, own = read_label(path)
        _require_mask(mask, path)
        if problem := grid_problem(grid, own, first):
            raise DataError(path, problem)
        inside = mask != 0
        if (both := joined[inside & (joined != 0)]).size:
            other = next(path for one, path in masks if one == both[0])
            text = f"has {counted(int(np.count_nonzero(both == both[0])), 'voxel')} in common with {other.name}"
            raise DataError(path, f"{text}: correct them, or choose one by bids.labels in site.yaml")
        joined[inside] = value
    return joined, grid


def _require_mask(mask: NDArray[np.uint8], path: Path) -> None:
    if (highest := int(mask.max())) > 1:
        raise DataError(path, f"holds the value {highest}, and a mask holds 0 and 1")
