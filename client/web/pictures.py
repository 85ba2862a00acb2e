"""Slices of scans with their labels, as PNG files for this machine's page."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.datasets.case import Case, read_case_label, read_image
from common.imaging.geometry import Grid

COLOURS = np.array(
    [
        (0, 0, 0),
        (86, 180, 233),
        (230, 159, 0),
        (0, 158, 115),
        (204, 121, 167),
        (240, 228, 66),
        (213, 94, 0),
        (0, 114, 178),
    ]
)
"""Of labels from 1 on, again and again; easy to tell apart for everybody (Okabe and Ito 2008)."""
OPACITY = 0.5
_WIDEST = 4096


def draw_case(case: Case, file: Path, declared: Collection[int]) -> tuple[int, int]:
    """Draw one axial slice of a case with its label map, if that fits, and return how wide and high it is in mm.

    The slice is the one with the most voxels of labels that nobody declared or, without these, of all labels.

    Parameters
    ----------
    declared
        The labels that there may be.

    Raises
    ------
    DataError
        The image cannot be read.
    """
    volume = read_image(case)
    label = _label_of(case, volume.grid)
    image = volume.array[0]
    at = image.shape[2] // 2
    if label is not None and label.any():
        odd = ~np.isin(label, [0, *declared])
        at = slice_with_most(odd if odd.any() else label > 0)
    write_png(file, slice_of(image, label, at))
    return size_of(volume.grid)


def _label_of(case: Case, grid: Grid) -> NDArray[np.uint8] | None:
    """Return a case's label map; None if there is none, or none that can be drawn on the image."""
    if case.label is None:
        return None
    doubts: list[str] = []
    try:
        label, its_grid = read_case_label(case, case.label, doubts.append)
    except (DataError, ValueError):
        return None
    return label if its_grid.shape == grid.shape else None


def slice_with_most(mask: NDArray[np.bool_]) -> int:
    """Return the axial slice with the most voxels of a mask (x, y, z)."""
    return int(np.argmax(np.count_nonzero(mask, axis=(0, 1))))


def slice_of(image: NDArray[np.float32], label: NDArray[np.uint8] | None, at: int) -> NDArray[np.uint8]:
    """Return an axial slice as radiologists see it: the patient's right on the left, their front on top.

    Parameters
    ----------
    image, label
        (x, y, z), axes in RAS+ order.
    at
        Number of the slice.

    Returns
    -------
    NDArray[np.uint8]
        Colours (rows, columns, 3).
    """
    plane = np.nan_to_num(image[:, :, at].T[::-1, ::-1].astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = np.percentile(plane, (1, 99))
    grey = np.clip((plane - low) / max(high - low, 1e-9), 0, 1) * 255
    rgb = np.repeat(grey[..., None], 3, axis=2)
    if label is not None:
        labels = label[:, :, at].T[::-1, ::-1]
        colours = COLOURS[(labels.astype(np.int64) - 1) % (len(COLOURS) - 1) + 1]
        rgb = np.where((labels > 0)[..., None], (1 - OPACITY) * rgb + OPACITY * colours, rgb)
    return rgb.astype(np.uint8)


def write_png(file: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture, uint8 (rows, columns, 3); a very large one with fewer pixels."""
    from matplotlib.image import imsave

    step = max(1, -(-max(picture.shape[:2]) // _WIDEST))
    imsave(file, picture[::step, ::step])


def size_of(grid: Grid) -> tuple[int, int]:
    """Return how wide and high an axial slice is, in mm."""
    (x, y, _), (across, down, _) = grid.shape, grid.spacing
    return max(1, round(x * across)), max(1, round(y * down))
