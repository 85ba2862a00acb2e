"""Where voxels are: against the formula of the standard, against dcm2niix, and refused where there is no answer."""

from __future__ import annotations

import subprocess
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.imaging.geometry import reorient_to_ras
from common.imaging.io.dicom.volume import read_series
from common.imaging.io.nifti import read_volume
from tests.dicom_series import CT, make_series, need_tool, only_series_in, save, series_in

SERIES = 30


def some_rotation(seed: int) -> NDArray[np.float64]:
    """Axes in any of the 48 orders and directions, turned by up to 40 degrees or, once in five, not at all."""
    random = np.random.default_rng(seed)
    order = list(permutations(range(3)))[seed % 6]
    axes = np.eye(3)[:, order] * random.choice((-1, 1), 3)
    if seed % 5:
        angle, around = np.radians(random.uniform(1, 40)), random.normal(size=3)
        x, y, z = around / np.linalg.norm(around)
        cross = np.array(((0, -z, y), (z, 0, -x), (-y, x, 0)))
        axes = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) @ axes
    # The standard counts slices either way, so the third axis may point against the cross product of the others.
    return np.asarray(axes * random.uniform(0.4, 3.0, 3))


def write_shuffled(folder: Path, seed: int) -> str:
    """Write a series whose names and numbers say nothing about its order; return its UID."""
    random = np.random.default_rng(seed)
    voxels = random.integers(0, 4000, (9 + seed % 4, 12, 16), dtype=np.uint16)
    slices = make_series(voxels, axes=some_rotation(seed), origin=random.uniform(-200, 200, 3), SeriesNumber=seed + 1)
    numbers = random.permutation(len(slices))
    for one, number in zip(slices, numbers, strict=True):
        one.InstanceNumber = int(number) + 1
        one.SeriesDescription = f"case {seed}"
    save(folder, slices, names=[f"{number}.dcm" for number in random.permutation(len(slices))])
    return str(slices[0].SeriesInstanceUID)


@pytest.mark.parametrize("seed", range(12))
def test_every_voxel_is_where_the_standard_says(tmp_path: Path, seed: int) -> None:
    write_shuffled(tmp_path, seed)
    volume = read_series(only_series_in(tmp_path))
    random = np.random.default_rng(seed)
    voxels = random.integers(0, 4000, (9 + seed % 4, 12, 16), dtype=np.uint16)
    origin, axes = random.uniform(-200, 200, 3), some_rotation(seed)
    for _ in range(30):
        i, j, k = (int(random.integers(size)) for size in voxels.shape[::-1])
        ras = np.array((-1, -1, 1)) * (origin + axes @ (i, j, k))
        found = np.linalg.solve(volume.grid.affine, (*ras, 1))[:3]
        index = tuple(np.rint(found).astype(int))
        assert np.abs(found - index).max() < 1e-3
        assert volume.array[0][index] == voxels[k, j, i]
    assert volume.grid.orientation == "RAS"


def assert_same_as(converted: Path, folder: Path) -> None:
    theirs = read_volume(converted)
    ours = read_series(only_series_in(folder))
    assert ours.grid.displacement_mm(theirs.grid) <= 0.01
    np.testing.assert_array_equal(ours.array, theirs.array)


def convert(folder: Path, out: Path) -> None:
    out.mkdir()
    command = [need_tool("dcm2niix"), "-b", "n", "-z", "n", "-d", "9", "-f", "%j", "-o", out, folder]
    subprocess.run(command, check=True, capture_output=True)


def test_geometry_equals_that_of_dcm2niix(tmp_path: Path) -> None:
    uids = [write_shuffled(tmp_path / "series" / str(seed), seed) for seed in range(SERIES)]
    convert(tmp_path / "series", tmp_path / "nifti")
    for seed, uid in enumerate(uids):
        assert_same_as(tmp_path / "nifti" / f"{uid}.nii", tmp_path / "series" / str(seed))


@pytest.mark.parametrize("name", ["brain-ge/T1post", "hippocrop-1", "hippocrop-2"])
def test_real_series_equal_those_of_dcm2niix(real_dicom: Path, tmp_path: Path, name: str) -> None:
    convert(real_dicom / name, tmp_path / "nifti")
    (converted,) = (tmp_path / "nifti").glob("*.nii")
    assert_same_as(converted, real_dicom / name)


def test_the_real_slice_distance_is_that_of_positions(real_dicom: Path) -> None:
    series = only_series_in(real_dicom / "brain-ge")
    assert series.grid is not None
    np.testing.assert_allclose(series.grid.spacing, (0.4297, 0.4297, 6.5), atol=1e-4)


def refusal(folder: Path) -> str:
    series = only_series_in(folder)
    assert series.grid is None and not series.slices
    return series.refusal


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    slices = make_series()
    assert refusal(save(tmp_path, slices[:3] + slices[4:])) == "lacks 1 slice: some are 2.5 mm apart, others 5 mm"


def test_a_doubled_slice_is_refused(tmp_path: Path) -> None:
    slices = make_series()
    slices[5].ImagePositionPatient = slices[4].ImagePositionPatient
    assert "has 1 slice at the position of another" in refusal(save(tmp_path, slices))


@pytest.mark.parametrize(
    ("axis", "millimetres", "reason"),
    [
        (2, 0.6, "has irregular slice distances, from 1.9 to 3.1 mm"),
        (2, 0.05, ""),
        (0, 0.6, "has slices that are not behind each other"),
        (0, 0.05, ""),
    ],
)
def test_a_slice_out_of_line_is_refused_beyond_a_tenth_of_a_millimetre(
    tmp_path: Path, axis: int, millimetres: float, reason: str
) -> None:
    slices = make_series()
    position = [float(value) for value in slices[3].ImagePositionPatient]
    position[axis] += millimetres
    slices[3].ImagePositionPatient = position
    found = only_series_in(save(tmp_path, slices)).refusal
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path: Path) -> None:
    axes = np.diag((0.7, 0.8, 2.5))
    axes[1, 2] = 2.5 * np.tan(np.radians(12))
    assert "tilted gantry: its slices are shifted by 12.0 degrees" in refusal(
        save(tmp_path, make_series(kind=CT, axes=axes))
    )


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], "no pair of unit vectors"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "no right angle"),
        ("ImageOrientationPatient", ["nan", 0, 0, 0, 1, 0], "not 6 finite numbers"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 1], "not 6 finite numbers"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.9, 0.43589], "has slices in 2 orientations"),
        ("ImageOrientationPatient", None, "no position in the patient"),
        ("ImagePositionPatient", ["inf", 0, 0], "not 3 finite numbers"),
        ("PixelSpacing", [0, 0.8], "no PixelSpacing above 0"),
        ("PixelSpacing", [0.5, 0.5], "several pixel spacings"),
        ("FrameOfReferenceUID", "1.2.3", "several frames of reference"),
        ("RescaleSlope", 0, "no straight line"),
    ],
)
def test_one_slice_that_does_not_fit_refuses_the_series(
    tmp_path: Path, keyword: str, value: object, reason: str
) -> None:
    slices = make_series()
    setattr(slices[3], keyword, value)
    assert reason in refusal(save(tmp_path, slices))


def test_slices_of_two_sizes_are_refused(tmp_path: Path) -> None:
    small = make_series(np.ones((1, 8, 16), dtype=np.uint16))[0]
    slices = make_series()
    small.SeriesInstanceUID, small.StudyInstanceUID = slices[0].SeriesInstanceUID, slices[0].StudyInstanceUID
    small.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    assert "several sizes (16 x 8, 16 x 16 pixels)" in refusal(save(tmp_path, [*slices, small]))


def test_numbers_of_instances_and_names_do_not_matter(tmp_path: Path) -> None:
    slices = make_series()
    plain = read_series(only_series_in(save(tmp_path / "plain", slices)))
    for one in slices:
        one.InstanceNumber = 1
    shuffled = save(tmp_path / "shuffled", slices[::-1], names=[f"IM{index}" for index in range(8)])
    found = read_series(series_in(shuffled)[0])
    np.testing.assert_array_equal(found.array, plain.array)
    assert found.grid.displacement_mm(plain.grid) == 0


def test_the_source_grid_has_columns_rows_and_slices(tmp_path: Path) -> None:
    volume = read_series(
        only_series_in(save(tmp_path, make_series(np.arange(960).astype(np.uint16).reshape(8, 10, 12))))
    )
    assert volume.source.grid.shape == (12, 10, 8)
    assert volume.source.orientation == "LPS"
    stored = np.arange(960, dtype=np.float32).reshape(8, 10, 12).transpose(2, 1, 0)
    np.testing.assert_array_equal(reorient_to_ras(stored, volume.source.grid), volume.array[0])
