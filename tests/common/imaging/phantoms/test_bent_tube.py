"""Bent tubes: what every one of them has in common, what varies, and how they become a dataset."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from common.imaging.datasets.case import load_case
from common.imaging.datasets.dataset import find_dataset
from common.imaging.phantoms.bent_tube import BENT_TUBE_LABELS, draw_bent_tube
from common.imaging.phantoms.dataset import write_phantom_dataset

SHAPE = (35, 51, 35)
SPACING = (1.0, 1.0, 1.0)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_bent_tube(SHAPE, SPACING, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(12))
def test_a_tube_is_one_piece_of_two_parts_the_anterior_in_front_and_lower(seed: int) -> None:
    image, label = drawn(seed)
    assert (image.dtype, label.dtype, image.shape, label.shape) == (np.float32, np.uint8, SHAPE, SHAPE)
    assert np.isfinite(image).all()
    assert image.min() >= 0
    for part in (label > 0, label == 1, label == 2):
        pieces, count = ndimage.label(part)
        sizes = np.bincount(pieces.ravel())[1:]
        assert count >= 1
        assert sizes.max() > 0.97 * sizes.sum()
    anterior, posterior = (np.argwhere(label == value).mean(axis=0) for value in (1, 2))
    assert anterior[1] > posterior[1] + 8
    length = np.ptp(np.argwhere(label > 0)[:, 1]) + 1
    assert 25 <= length <= 51
    assert 800 <= (label > 0).sum() <= 6500, "cubic millimetres"


def test_tubes_are_left_and_right_and_differ_in_contrast_and_place() -> None:
    tubes = [drawn(seed) for seed in range(30)]
    outwards = []
    for _, label in tubes:
        places = np.argwhere(label > 0)
        middle = np.abs(places[:, 1] - places[:, 1].mean()) < 6
        outwards.append(places[middle, 0].mean() - places[~middle, 0].mean())
    assert min(outwards) < -0.5
    assert max(outwards) > 0.5
    contrasts = [image[label > 0].mean() - image[label == 0].mean() for image, label in tubes]
    assert np.std(contrasts) > 0.03
    assert np.std([ndimage.center_of_mass(label > 0) for _, label in tubes], axis=0).min() > 0.5


def test_finer_voxels_show_the_same_size() -> None:
    coarse, fine = drawn(3)[1], draw_bent_tube((70, 102, 70), (0.5, 0.5, 0.5), np.random.default_rng(3))[1]
    assert 0.4 < (fine > 0).sum() / 8 / (coarse > 0).sum() < 2.5


def test_a_dataset_of_tubes_has_their_labels_and_voxels(tmp_path) -> None:
    root = write_phantom_dataset(tmp_path / "data", (2, 1, 1, 1, 1), 4, SHAPE, "bent_tube", 1.0)
    dataset = find_dataset(root)
    assert (dataset.labels, len(dataset.cases)) == (BENT_TUBE_LABELS, 6)
    spacings = set()
    for case in dataset.cases:
        volume, label = load_case(case, dataset.labels, channels=1)
        assert set(np.unique(label)) == {0, 1, 2}
        np.testing.assert_allclose(np.multiply(volume.grid.shape, volume.grid.spacing), SHAPE, atol=1)
        spacings.add(volume.grid.spacing)
    assert len(spacings) == 4
    assert np.mean(list(spacings)) == pytest.approx(1.0, abs=0.1)
