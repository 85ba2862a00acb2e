"""Filled contours against a slow version that counts crossings pixel by pixel; what is no clear area is refused."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from common.imaging.io.dicom.labels import polygons as room
from common.imaging.io.dicom.labels.polygons import ContourError, fill

ROWS, COLUMNS = 13, 17
Polygon = NDArray[np.float64]


def turns(polygon: Polygon) -> NDArray[np.int64]:
    """Count for each pixel how often a polygon goes round it, by the edges that a line to its right crosses."""
    found = np.zeros((ROWS, COLUMNS), dtype=np.int64)
    for row in range(ROWS):
        for column in range(COLUMNS):
            for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if (y0 <= row) != (y1 <= row) and x0 + (row - y0) * (x1 - x0) / (y1 - y0) > column:
                    found[row, column] += 1 if y0 < y1 else -1
    return found


def square(left: float, top: float, right: float, bottom: float) -> Polygon:
    return np.array(((left, top), (right, top), (right, bottom), (left, bottom)))


@pytest.mark.parametrize("seed", range(30))
def test_random_polygons_are_filled_as_the_slow_version_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    polygon = random.uniform(-5, 22, (random.integers(1, 9), 2))
    if seed % 2:
        polygon = np.rint(polygon)
    expected = turns(polygon)
    if np.abs(expected).max() > 1:
        with pytest.raises(ContourError, match="go round a pixel more than once"):
            fill([polygon], ROWS, COLUMNS)
    else:
        np.testing.assert_array_equal(fill([polygon], ROWS, COLUMNS), expected != 0)


def test_many_corners_are_filled_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    radius = np.random.default_rng(0).uniform(2, 6, (200, 1))
    polygon = (8, 6) + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
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


def test_an_island_in_a_hole_is_filled_whatever_the_order() -> None:
    found = fill([square(4.5, 4.5, 5.5, 5.5), square(1.5, 1.5, 9.5, 9.5), square(3.5, 3.5, 6.5, 6.5)], ROWS, COLUMNS)
    assert found.sum() == 64 - 9 + 1 and found[5, 5]


def test_contours_side_by_side_are_filled_and_may_share_a_line_of_pixels() -> None:
    apart = fill([square(1.5, 1.5, 4.5, 9.5), square(8.5, 1.5, 12.5, 9.5)], ROWS, COLUMNS)
    assert apart.sum() == 8 * (3 + 4)
    shared = fill([square(1.5, 1.5, 6.5, 9.5), square(5.5, 1.5, 12.5, 9.5)], ROWS, COLUMNS)
    np.testing.assert_array_equal(shared, fill([square(1.5, 1.5, 12.5, 9.5)], ROWS, COLUMNS))


BOX = square(1.5, 1.5, 9.5, 9.5)
UNCLEAR = {
    "twice": ([BOX, BOX], "fill the same pixels"),
    "twice, other corners": ([BOX, np.roll(BOX[::-1], 1, axis=0) + 0.2], "fill the same pixels"),
    "three times": ([BOX, BOX, BOX], "fill the same pixels"),
    "a hole twice": ([BOX, *[square(3.5, 3.5, 6.5, 6.5)] * 2], "fill the same pixels"),
    "overlap by two pixels": ([BOX, square(7.5, 1.5, 12.5, 9.5)], "cross each other"),
    "moved by a pixel": ([BOX, BOX + 1], "cross each other"),
    "a hole that leaves": ([BOX, square(3.5, 3.5, 10.5, 6.5)], "cross each other"),
    "round twice": ([np.concatenate((BOX, BOX))], "go round a pixel more than once"),
    "a loop too many": (
        [np.concatenate((BOX, BOX[:1], square(1.5, 1.5, 3.5, 3.5)))],
        "go round a pixel more than once",
    ),
}


@pytest.mark.parametrize("way", UNCLEAR)
def test_contours_of_no_clear_area_are_refused(way: str) -> None:
    polygons, reason = UNCLEAR[way]
    with pytest.raises(ContourError, match=reason):
        fill(polygons, ROWS, COLUMNS)


def test_a_contour_that_begins_again_at_its_end_is_filled() -> None:
    np.testing.assert_array_equal(fill([np.concatenate((BOX, BOX[:1]))], ROWS, COLUMNS), fill([BOX], ROWS, COLUMNS))


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
