"""Series of a tilted gantry: moved to an upright grid, on which every voxel has the value of its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.imaging.io.dicom.rules import DicomRules
from common.imaging.io.dicom.volume import read_series
from tests.dicom_series import CT, make_series, only_series_in, save

RESAMPLE = DicomRules(gantry_tilt="resample")
GRADIENT = np.array((3.0, 2.0, -1.5))  # of the intensity, per mm along LPS+


def tilted(sideways: float, down: float, turned: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Axes of a tilted stack, and its stored values in hundredths: linear in the position."""
    axes = np.array(((0.8, 0.0, sideways), (0.0, 0.9, down), (0.0, 0.0, 2.5)))
    if turned:
        angle = np.radians(25)
        turn = np.array(((1, 0, 0), (0, np.cos(angle), -np.sin(angle)), (0, np.sin(angle), np.cos(angle))))
        axes = turn @ axes
    k, j, i = np.meshgrid(np.arange(9), np.arange(20), np.arange(24), indexing="ij")
    places = np.stack((i, j, k), axis=-1) @ axes.T
    return axes, np.rint(100 * (places @ GRADIENT)).astype(np.int16)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("sideways", "down"), [(0.0, 0.53), (0.0, -0.9), (0.8, 0.0), (-0.31, 0.47)])
def test_every_voxel_has_the_value_of_its_place(tmp_path: Path, sideways: float, down: float, turned: bool) -> None:
    axes, stored = tilted(sideways, down, turned)
    slices = make_series(stored, kind=CT, axes=axes, origin=(0, 0, 0), RescaleSlope="0.01")
    volume = read_series(only_series_in(save(tmp_path, slices), RESAMPLE))
    indices = np.stack(np.meshgrid(*map(np.arange, volume.grid.shape), indexing="ij"), axis=-1)
    ras = indices @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3]
    lps = ras * (-1, -1, 1)
    i, j, k = np.moveaxis(lps @ np.linalg.inv(axes).T, -1, 0)
    inside = (i >= 0) & (i <= 23) & (j >= 0) & (j <= 19)
    assert np.abs(k - np.rint(k)).max() < 1e-6
    np.testing.assert_allclose(volume.array[0][inside], (lps @ GRADIENT)[inside], atol=0.011)
    beyond = (i <= -1) | (i >= 24) | (j <= -1) | (j >= 20)
    assert (volume.array[0][beyond] == np.float32(stored.min() * np.float64(0.01))).all() and beyond.any()


def test_no_pixel_is_lost(tmp_path: Path) -> None:
    axes = np.array(((0.8, 0.0, 0.0), (0.0, 0.9, 0.9), (0.0, 0.0, 2.5)))
    stored = np.random.default_rng(0).integers(1, 1000, (9, 20, 24), dtype=np.uint16)
    slices = make_series(stored, kind=CT, axes=axes)
    volume = read_series(only_series_in(save(tmp_path, slices), RESAMPLE))
    assert volume.source.grid.shape == (24, 28, 9)  # a row for each slice but the first
    found = volume.array[0, ::-1, ::-1].transpose(2, 1, 0)
    for index in range(9):
        np.testing.assert_array_equal(found[index, index : index + 20], stored[index])


def test_upright_series_are_left_as_they_are(tmp_path: Path) -> None:
    folder = save(tmp_path, make_series(kind=CT))
    ours, usual = read_series(only_series_in(folder, RESAMPLE)), read_series(only_series_in(folder))
    np.testing.assert_array_equal(ours.array, usual.array)


def test_padding_of_tilted_slices_gets_the_lowest_value(tmp_path: Path) -> None:
    axes, stored = tilted(0.0, 0.53)
    stored = stored + 10_000
    stored[:, :2] = -2000
    slices = make_series(stored, kind=CT, axes=axes)
    for one in slices:
        one.add_new("PixelPaddingValue", "SS", -2000)
    volume = read_series(only_series_in(save(tmp_path, slices), RESAMPLE))
    assert volume.array.min() == stored[stored > -2000].min()
