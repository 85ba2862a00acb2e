"""Slices of a tilted gantry: shifted against each other, and moved back within their planes on request."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Shift:
    """How far every slice lies beside the one before it.

    Attributes
    ----------
    columns, rows
        In pixels, along columns and rows.
    """

    columns: float = 0.0
    rows: float = 0.0

    def margin(self, slices: int) -> tuple[int, int]:
        """Return how many columns and rows more an upright stack of so many slices needs to hold all pixels."""
        return math.ceil(abs(self.columns) * (slices - 1)), math.ceil(abs(self.rows) * (slices - 1))

    def start(self, slices: int) -> tuple[float, float]:
        """Return column and row of an upright stack's first pixel, counted from the first pixel of the first slice."""
        return min(0.0, self.columns * (slices - 1)), min(0.0, self.rows * (slices - 1))


UPRIGHT = Shift()


def straighten(stack: NDArray[np.float32], shift: Shift, fill: float, out: NDArray[np.float32]) -> None:
    """Move slices to where they belong, with linear interpolation within their planes.

    Parameters
    ----------
    stack
        (columns, rows, slices), without NaN.
    shift
        How far every slice lies beside the one before it.
    fill
        Value outside of the slices.
    out
        (columns, rows, slices) with ``Shift.margin`` more columns and rows.
    """
    first = shift.start(stack.shape[2])
    out[...] = fill
    for index in range(stack.shape[2]):
        column, column_part = _split(index * shift.columns - first[0])
        row, row_part = _split(index * shift.rows - first[1])
        plane = np.pad(stack[:, :, index], 1, constant_values=fill)
        plane = (1 - column_part) * plane[1:] + column_part * plane[:-1]
        plane = (1 - row_part) * plane[:, 1:] + row_part * plane[:, :-1]
        # Where a part is 0, the last column or row is nothing but fill, and may have no room.
        target = out[column : column + plane.shape[0], row : row + plane.shape[1], index]
        target[...] = plane[: target.shape[0], : target.shape[1]]


def straighten_label(label: NDArray[np.uint8], shift: Shift) -> NDArray[np.uint8]:
    """Return a label map (columns, rows, slices) with its slices moved to the nearest pixels of the upright stack."""
    columns, rows, slices = label.shape
    (more_columns, more_rows), first = shift.margin(slices), shift.start(slices)
    out = np.zeros((columns + more_columns, rows + more_rows, slices), dtype=np.uint8)
    for index in range(slices):
        column, row = round(index * shift.columns - first[0]), round(index * shift.rows - first[1])
        out[column : column + columns, row : row + rows, index] = label[:, :, index]
    return out


def _split(offset: float) -> tuple[int, float]:
    return math.floor(offset), offset - math.floor(offset)
