"""Pictures as numbers for SVG: bars of what is spent, and lines over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN = 640, 220, 34
MOST_POINTS = 200


@dataclass(frozen=True)
class Bar:
    """How much of a limit is spent, in 640ths; ``limit`` is where the limit is, None without one."""

    spent: int
    limit: int | None
    is_over: bool


@dataclass(frozen=True)
class Line:
    """The points of one line, and its number among the colours."""

    name: str
    style: int
    points: str


@dataclass(frozen=True)
class Chart:
    """Lines in a picture of 640 by 220, its scale, and how high a limit is drawn; None without one."""

    lines: Sequence[Line]
    low: str
    high: str
    first: int
    last: int
    limit: int | None = None


def bar_of(spent: float | None, limit: float | None, largest: float) -> Bar:
    """Return the bar of an epsilon.

    Parameters
    ----------
    spent
        None if it is unlimited.
    limit
        None without one.
    largest
        The largest epsilon of all bars, for their common scale.
    """
    scale = max(largest, limit or 0.0) or 1.0
    width = WIDTH if spent is None else round(WIDTH * min(spent / scale, 1.0))
    is_over = limit is not None and (spent is None or spent > limit)
    return Bar(width, None if limit is None else round(WIDTH * limit / scale), is_over)


def chart_of(
    x: Sequence[int], lines: Sequence[tuple[str, Sequence[float | None]]], limit: float | None = None
) -> Chart | None:
    """Return lines over the same rounds, thinned out; None without any value.

    Parameters
    ----------
    x
        The rounds, ascending.
    lines
        Name and values, None where there is none.
    limit
        A value to draw across.
    """
    values = [value for _, line in lines for value in line if value is not None]
    if not values:
        return None
    values += [0.0] if limit is None else [0.0, limit]
    low, high = min(values), max(values)
    across, up = max(x[-1] - x[0], 1), (high - low) or 1.0

    def down(value: float) -> int:
        return round(HEIGHT - MARGIN - (value - low) / up * (HEIGHT - 2 * MARGIN))

    step = max(1, len(x) // MOST_POINTS)
    drawn = []
    for index, (name, line) in enumerate(lines):
        points = list(zip(x, line, strict=True))[::-step][::-1]
        known = [(at, value) for at, value in points if value is not None]
        places = (f"{MARGIN + (at - x[0]) / across * (WIDTH - 2 * MARGIN):.0f},{down(value)}" for at, value in known)
        drawn.append(Line(name, index, " ".join(places)))
    return Chart(drawn, f"{low:.3g}", f"{high:.3g}", x[0], x[-1], None if limit is None else down(limit))
