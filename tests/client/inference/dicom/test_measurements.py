"""Sizes of structures: closed forms, and every pair of corners of every voxel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from client.inference.dicom.measurements import largest_diameter, measure
from common.imaging.geometry import Grid
from tests.common.imaging.io.dicom.test_geometry import some_rotation


def by_brute_force(mask: np.ndarray, axes: np.ndarray) -> float:
    offsets = np.stack(np.meshgrid((0, 1), (0, 1), (0, 1), indexing="ij"), axis=-1).reshape(8, 3)
    corners = np.unique((np.argwhere(mask)[:, None] + offsets).reshape(-1, 3), axis=0)
    return float(pdist(corners @ axes.T).max())


@pytest.mark.parametrize("seed", range(12))
def test_the_largest_diameter_is_that_of_every_pair_of_corners(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(tuple(random.integers(1, 9, 3))) < random.choice((0.05, 0.3, 0.9))
    mask.flat[random.integers(mask.size)] = True
    axes = some_rotation(seed)
    assert largest_diameter(mask, axes) == pytest.approx(by_brute_force(mask, axes), rel=1e-12)


def test_a_box_has_its_diagonal_and_its_volume() -> None:
    label = np.zeros((20, 30, 10), dtype=np.uint8)
    label[2:12, 5:25, 3:7] = 2
    label[0, 0, 0] = 3
    sizes = measure(label, Grid(label.shape, np.diag((-0.5, 0.8, 6.5, 1.0))), [1, 2, 3])
    assert sizes[1].volume_ml == 0 and sizes[1].diameter_mm is None
    assert sizes[2].volume_ml == pytest.approx(10 * 20 * 4 * 0.5 * 0.8 * 6.5 / 1000)
    assert sizes[2].diameter_mm == pytest.approx(np.sqrt(5**2 + 16**2 + 26**2))
    assert sizes[3].diameter_mm == pytest.approx(np.sqrt(0.5**2 + 0.8**2 + 6.5**2))


def test_a_ball_has_its_diameter() -> None:
    places = np.stack(np.meshgrid(*[np.arange(81) - 40] * 3, indexing="ij"))
    mask = (places**2).sum(axis=0) <= 38**2
    assert largest_diameter(mask, np.eye(3)) == pytest.approx(2 * 38 + 1, abs=1)
