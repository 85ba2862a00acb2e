"""Histograms with public cells, and sums of whole numbers: both of several sites add up exactly.

The cells are the same at every site and follow from no data. For sizes they lie around or between the preferred
numbers of ISO 3 (series R40 and R20: steps of 6 and 12 %). Sums are of whole micrometres or hundredths of a Hounsfield
unit, because whole numbers add up to the same in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from common.plan.base import Frozen, Real, Whole

_R40 = (
    *(100, 106, 112, 118, 125, 132, 140, 150, 160, 170, 180, 190, 200, 212, 224, 236, 250, 265, 280, 300),
    *(315, 335, 355, 375, 400, 425, 450, 475, 500, 530, 560, 600, 630, 670, 710, 750, 800, 850, 900, 950),
)
Count = Annotated[Whole, Field(ge=0, le=10**12)]


@dataclass(frozen=True)
class Scale:
    """The cells of a histogram.

    Attributes
    ----------
    unit
        What the edges are in.
    parts
        Sums count in 1 / ``parts`` of the unit.
    edges
        Ascending; cell ``i`` reaches from edge ``i`` up to edge ``i + 1``. Smaller and larger values count as the first
        and the last edge, in sums too, so that no extreme value shows.
    typical
        For quantities that cluster on round values: the value in each cell that stands for it. Empty for others.
    """

    unit: str
    parts: int
    edges: tuple[float, ...]
    typical: tuple[float, ...] = ()

    def whole(self, values: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return values in whole parts of the unit."""
        whole: NDArray[np.int64] = np.rint(values.clip(self.edges[0], self.edges[-1]) * self.parts).astype(np.int64)
        return whole

    def cells(self, whole: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the cell of each value from ``whole``."""
        found: NDArray[np.int64] = np.searchsorted(self.edges, whole / self.parts, side="right") - 1
        return found.clip(max=len(self.edges) - 2)


def _preferred(every: int, decades: range) -> tuple[float, ...]:
    return tuple(float(f"{digits}e{decade - 2}") for decade in decades for digits in _R40[::every])


def _around(values: tuple[float, ...]) -> tuple[float, ...]:
    middles = (round((low + high) / 2, 6) for low, high in pairwise(values))
    return (0.0, *middles, values[-1])


_SPACINGS = _preferred(1, range(-2, 2))
SPACING = Scale("mm", 1000, _around(_SPACINGS), _SPACINGS)
"""Voxel sizes: cells around the numbers of R40 from 0.01 to 95."""
EXTENT = Scale("mm", 1000, (0.0, *_preferred(2, range(4))))
"""Edges of volumes: cells between the numbers of R20 from 1 to 9000."""
HOUNSFIELD = Scale("HU", 100, tuple(map(float, range(-1200, 3201, 10))))
"""Intensities in CT: cells of 10 Hounsfield units."""


class Distribution(Frozen):
    """One quantity over the cases of a site, or of several sites.

    Attributes
    ----------
    count
        How many values there are.
    total, squares
        Sum of the values, and of their squares, in parts of the scale's unit; None if they are withheld.
    cells
        Lower edge of a cell -> how many values are in it, ascending, for the cells that are shown.
    suppressed
        How many values are in the cells that are not shown, because too few patients are in them.
    """

    count: Count
    total: Annotated[Whole, Field(ge=-(10**24), le=10**24)] | None
    squares: Annotated[Whole, Field(ge=0, le=10**36)] | None
    cells: tuple[tuple[Real, Annotated[Count, Field(ge=1)]], ...]
    suppressed: Count

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        edges = [edge for edge, _ in self.cells]
        if sorted(set(edges)) != edges:
            raise ValueError("cells must be in ascending order, and each only once")
        if self.shown + self.suppressed != self.count:
            raise ValueError(f"{self.shown} values in cells and {self.suppressed} suppressed are not {self.count}")
        if (self.total is None) != (self.squares is None):
            raise ValueError("total and squares are either both given or both withheld")
        if self.total is not None and self.squares is not None and self.count * self.squares < self.total**2:
            raise ValueError("squares is too small for total")
        return self

    @property
    def shown(self) -> int:
        """How many values are in cells that are shown."""
        return sum(count for _, count in self.cells)

    def shows(self, percent: float) -> bool:
        """Return whether cells tell a percentile: fewer values are suppressed than lie on its shorter side."""
        return bool(self.cells) and 100 * self.suppressed <= self.count * min(percent, 100 - percent)

    def is_known(self, percent: float) -> bool:
        """Return whether a percentile can be given: cells tell it, or there are sums to estimate it from."""
        return self.count > 0 and (self.shows(percent) or self.total is not None)

    def mean(self, scale: Scale) -> float:
        """Return the mean; NaN if the sums are withheld or empty."""
        return self.total / self.count / scale.parts if self.total is not None and self.count else math.nan

    def std(self, scale: Scale) -> float:
        """Return the standard deviation; NaN if the sums are withheld or empty."""
        if self.total is None or self.squares is None or not self.count:
            return math.nan
        # The difference of whole numbers is exact.
        return math.sqrt(self.count * self.squares - self.total**2) / self.count / scale.parts

    def percentile(self, percent: float, scale: Scale) -> float:
        """Return a percentile; NaN unless ``is_known``.

        If all values are equal, that is exact, because the sums tell. If cells tell it (``shows``), it is that of the
        values that are shown; without any suppressed, it is right to within a cell. Otherwise it is the percentile of
        the normal distribution with the same mean and standard deviation.
        """
        std = self.std(scale)
        if std == 0:
            return self.mean(scale)
        if not self.shows(percent):
            estimate = self.mean(scale) + NormalDist().inv_cdf(percent / 100) * std
            return float(np.clip(estimate, scale.edges[0], scale.edges[-1]))
        wanted = percent / 100 * self.shown
        reached = np.cumsum([count for _, count in self.cells])
        found = int(np.searchsorted(reached, wanted))
        edge, count = self.cells[found]
        cell = scale.edges.index(edge)
        if scale.typical:
            return scale.typical[cell]
        return edge + (scale.edges[cell + 1] - edge) * (wanted - float(reached[found]) + count) / count

    def check(self, scale: Scale, minimum: int) -> None:
        """Check that the cells are those of the scale and hold enough, and that the sums can be theirs.

        Parameters
        ----------
        scale
            What the values are measured by.
        minimum
            Fewest values in a cell that is shown.

        Raises
        ------
        ValueError
            They do not.
        """
        for edge, count in self.cells:
            if edge not in scale.edges[:-1]:
                raise ValueError(f"a cell begins at {edge:g} {scale.unit}, where no public cell begins")
            if count < minimum:
                raise ValueError(f"the cell at {edge:g} {scale.unit} shows {count}, fewer than {minimum}")
        if 0 < self.suppressed < minimum:
            raise ValueError(f"{self.suppressed} values are suppressed, fewer than {minimum}")
        if self.total is None or self.squares is None:
            return
        ranges = [(edge, scale.edges[scale.edges.index(edge) + 1], count) for edge, count in self.cells]
        ranges.append((scale.edges[0], scale.edges[-1], self.suppressed))
        least, most = (sum(count * ends[side] for *ends, count in ranges) for side in (0, 1))
        if not least - 1e-6 * abs(least) <= self.total / scale.parts <= most + 1e-6 * abs(most):
            raise ValueError(f"total does not fit the cells: it is not between {least:g} and {most:g} {scale.unit}")
        least = sum(count * max(low, -high, 0.0) ** 2 for low, high, count in ranges)
        most = sum(count * max(low**2, high**2) for low, high, count in ranges)
        if not (1 - 1e-6) * least <= self.squares / scale.parts**2 <= (1 + 1e-6) * most:
            raise ValueError(f"squares does not fit the cells: it is not between {least:g} and {most:g}")


def distribution(
    values: Sequence[NDArray[np.floating]], owners: Sequence[str], scale: Scale, minimum: int
) -> Distribution:
    """Count values, and suppress the cells of few patients.

    If fewer than ``minimum`` patients would be suppressed in all, the smallest other cell is suppressed as well:
    otherwise the difference of sums and cells, and the number of suppressed values, would tell about those few. If that
    was the last cell, the sums are withheld too.

    Parameters
    ----------
    values
        Those of each case.
    owners
        The patient of each case.
    scale
        The cells.
    minimum
        Fewest patients in a cell that is shown.
    """
    counts = np.zeros(len(scale.edges) - 1, dtype=np.int64)
    patients: dict[int, set[str]] = {}
    total = squares = 0
    for found, owner in zip(values, owners, strict=True):
        whole = scale.whole(found)
        total += int(whole.sum())
        squares += int((whole * whole).sum())
        for cell, count in zip(*np.unique(scale.cells(whole), return_counts=True), strict=True):
            counts[cell] += count
            patients.setdefault(int(cell), set()).add(owner)
    shown = {cell for cell, found in patients.items() if len(found) >= minimum}

    def are_few() -> bool:
        hidden = {owner for cell, found in patients.items() if cell not in shown for owner in found}
        return 0 < len(hidden) < minimum

    withheld = are_few() and len(shown) <= 1
    if are_few() and shown:
        shown.remove(min(shown, key=lambda cell: (len(patients[cell]), cell)))
    cells = tuple((scale.edges[cell], int(counts[cell])) for cell in sorted(shown))
    return Distribution(
        count=int(counts.sum()),
        total=None if withheld else total,
        squares=None if withheld else squares,
        cells=cells,
        suppressed=int(counts.sum()) - sum(count for _, count in cells),
    )


def add(parts: Sequence[Distribution]) -> Distribution:
    """Add the distributions of several sites; sums that one of them withholds are withheld."""
    cells: dict[float, int] = {}
    for part in parts:
        for edge, count in part.cells:
            cells[edge] = cells.get(edge, 0) + count
    totals = [part.total for part in parts if part.total is not None]
    squares = [part.squares for part in parts if part.squares is not None]
    complete = len(totals) == len(parts)
    return Distribution(
        count=sum(part.count for part in parts),
        total=sum(totals) if complete else None,
        squares=sum(squares) if complete else None,
        cells=tuple(sorted(cells.items())),
        suppressed=sum(part.suppressed for part in parts),
    )
