"""Filled contours against a slow version that counts crossings pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from common.imaging.io.dicom.labels import polygons as room
from common.imaging.io.dicom.labels.polygons import fill

ROWS, COLUMNS = 13, 17
Polygon = NDArray[np.float64]


def slowly(polygons: list[Polygon]) -> NDArray[np.bool_]:
    """Count for each pixel how often a line to its right crosses edges."""
    found = np.zeros((ROWS, COLUMNS), dtype=bool)
    for row in range(ROWS):
        for column in range(COLUMNS):
            for polygon in polygons:
                for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                    if (y0 <= row) != (y1 <= row) and x0 + (row - y0) * (x1 - x0) / (y1 - y0) > column:
                        found[row, column] ^= True
    return found


def square(left: float, top: float, right: float, bottom: float) -> Polygon:
    return np.array(((left, top), (right, top), (right, bottom), (left, bottom)))


@pytest.mark.parametrize("seed", range(20))
def test_random_polygons_are_filled_as_the_slow_version_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    polygons = [random.uniform(-5, 22, (random.integers(1, 9), 2)) for _ in range(random.integers(1, 4))]
    if seed % 2:
        polygons = [np.rint(polygon) for polygon in polygons]
    np.testing.assert_array_equal(fill(polygons, ROWS, COLUMNS), slowly(polygons))


def test_many_corners_are_filled_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    polygon = np.random.default_rng(0).uniform(0, 13, (200, 2))
    whole = fill([polygon], ROWS, COLUMNS)
    monkeypatch.setattr(room, "_MOST_CROSSINGS", 7)
    np.testing.assert_array_equal(fill([polygon], ROWS, COLUMNS), whole)


def test_matplotlib_agrees_on_a_convex_polygon() -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    polygon = np.stack((8.03 + 5.37 * np.cos(angles), 6.01 + 4.71 * np.sin(angles)), axis=1)
    centres = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS)), axis=-1).reshape(-1, 2)
    expected = Outline(polygon).contains_points(centres).reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(fill([polygon], ROWS, COLUMNS), expected)


def test_a_hole_is_a_contour_within_a_contour() -> None:
    found = fill([square(1.5, 1.5, 9.5, 9.5), square(3.5, 3.5, 6.5, 6.5)], ROWS, COLUMNS)
    assert found.sum() == 64 - 9 and not found[4:7, 4:7].any()


def test_a_keyhole_is_a_hole() -> None:
    outline = np.array(((1.5, 1.5), (9.5, 1.5), (9.5, 9.5), (1.5, 9.5)))
    inner = np.array(((3.5, 3.5), (3.5, 6.5), (6.5, 6.5), (6.5, 3.5)))
    keyhole = np.concatenate((outline, outline[:1], inner, inner[:1]))
    np.testing.assert_array_equal(
        fill([keyhole], ROWS, COLUMNS), fill([square(1.5, 1.5, 9.5, 9.5), square(3.5, 3.5, 6.5, 6.5)], ROWS, COLUMNS)
    )


def test_neighbours_on_pixel_centres_share_none_and_leave_none_out() -> None:
    left, right = fill([square(2, 2, 7, 9)], ROWS, COLUMNS), fill([square(7, 2, 12, 9)], ROWS, COLUMNS)
    assert not (left & right).any()
    np.testing.assert_array_equal(left | right, fill([square(2, 2, 12, 9)], ROWS, COLUMNS))
    assert left.sum() == 5 * 7


def test_what_leaves_the_image_is_cut() -> None:
    assert fill([square(-1e5, -1e5, 1e5, 1e5)], ROWS, COLUMNS).all()
    assert not fill([square(20, 2, 30, 9)], ROWS, COLUMNS).any()
    assert not fill([np.array(((3.0, 3.0),))], ROWS, COLUMNS).any()
