"""Headers made by nibabel, so that qform and sform are what other programs would see."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydantic import ValidationError

from common.imaging.geometry import Grid
from common.imaging.io.nifti import read_volume
from common.imaging.plausibility import header_contradictions, padding_problem, range_problem
from common.imaging.ranges import USUAL_RANGES, GeometryRanges

SHAPE = (8, 9, 10)


def grid(spacing: tuple[float, float, float], shape: tuple[int, int, int] = SHAPE) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(
    ("spacing", "shape", "text"),
    [
        ((1000, 1500, 2000), SHAPE, "voxels of 1000 x 1500 x 2000 mm, and only 0.05 to 20 mm"),
        ((0.001, 0.001, 0.001), SHAPE, "0.001 x 0.001 x 0.001"),
        ((1, 1, 2000), SHAPE, "1 x 1 x 2000"),
        ((1, 1, 20.1), SHAPE, "20.1"),
        ((0.049, 1, 1), SHAPE, "0.049"),
        ((10, 10, 10), (8, 8, 300), "is 80 x 80 x 3000 mm large, and at most 2500 mm"),
    ],
)
def test_names_what_cannot_be_true(spacing, shape, text) -> None:
    assert text in str(range_problem(grid(spacing, shape), USUAL_RANGES))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.05, 0.05, 20), (0.7, 0.7, 5)])
def test_takes_what_can_be_true(spacing) -> None:
    assert range_problem(grid(spacing), USUAL_RANGES) is None
    stored = tuple(float(np.float32(mm)) for mm in spacing)
    assert range_problem(grid(stored), USUAL_RANGES) is None, "rounded as in a file"


def test_the_ranges_are_the_hospitals_own() -> None:
    microscope = GeometryRanges(voxel_mm=(1e-4, 0.1), extent_mm=5)
    assert range_problem(grid((0.001, 0.001, 0.001)), microscope) is None
    assert range_problem(grid((1, 1, 1)), microscope) is not None
    for wrong in ({"voxel_mm": (2, 1)}, {"voxel_mm": (0, 1)}, {"extent_mm": float("inf")}, {"extent_mm": float("nan")}):
        with pytest.raises(ValidationError):
            GeometryRanges.model_validate(wrong)


def contradictions(folder: Path, change, ranges: GeometryRanges = USUAL_RANGES) -> list:
    """Of a scan of 2 mm voxels whose header ``change`` has changed."""
    image = nibabel.Nifti1Image(np.arange(720, dtype=np.float32).reshape(SHAPE), np.diag([2.0, 2, 2, 1]))
    image.set_qform(np.diag([2.0, 2, 2, 1]), code=1)
    image.set_sform(np.diag([2.0, 2, 2, 1]), code=2)
    change(image)
    image.to_filename(folder / "scan.nii")
    return header_contradictions(read_volume(folder / "scan.nii").source, ranges)


def turned(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return affine


def zoom(image: nibabel.Nifti1Image, size: float) -> None:
    image.header["pixdim"][1:4] = size


@pytest.mark.parametrize(
    ("change", "text", "changes_input"),
    [
        (lambda image: image.set_qform(np.diag([-2.0, 2, 2, 1]), code=1), "left and right: axes LAS and RAS", True),
        (lambda image: image.set_qform(np.diag([2.0, 2, -2, 1]), code=1), "directions: axes RAI and RAS", True),
        (lambda image: image.set_qform(turned(20), code=1), "differ by 20 degrees", False),
        (lambda image: image.set_qform(turned(50), code=1), "left and right", True),
        (lambda image: zoom(image, 3), "3 x 3 x 3, its sform 2 x 2 x 2: the sform is used", True),
    ],
)
def test_says_how_a_header_contradicts_itself(tmp_path: Path, change, text: str, changes_input: bool) -> None:
    [found] = contradictions(tmp_path, change)
    assert text in found.text and "sform is used" in found.text
    assert found.changes_input is changes_input


@pytest.mark.parametrize(
    "change",
    [
        lambda image: None,
        lambda image: image.set_qform(turned(4), code=1),
        lambda image: image.set_qform(np.diag([-2.0, 2, 2, 1]), code=0),
        lambda image: (zoom(image, 3), image.set_qform(None, code=0), image.set_sform(None, code=0)),
        lambda image: zoom(image, 2.01),
        lambda image: (image.set_qform(None, code=0), zoom(image, 0)),
    ],
)
def test_takes_headers_of_one_opinion(tmp_path: Path, change) -> None:
    assert contradictions(tmp_path, change) == []


def test_a_hospital_may_allow_larger_angles(tmp_path: Path) -> None:
    def change(image: nibabel.Nifti1Image) -> None:
        image.set_qform(turned(20), code=1)

    assert contradictions(tmp_path, change, GeometryRanges(contradiction_degrees=21)) == []


def problem(values: np.ndarray) -> str | None:
    values = values.astype(np.float32)
    return padding_problem(values, float(values.min()), float(values.max()))


@pytest.mark.parametrize("padding", [-2000, -3024, -32768, 32767])
def test_names_padding_far_from_all_other_values(padding: int) -> None:
    values = np.random.default_rng(0).integers(0, 900, (20, 20, 20))
    values[:2] = padding
    assert f"padding value {padding} in 10 % of its voxels" in str(problem(values))
    values[:] = padding
    assert problem(values) is None, "an empty volume is named elsewhere"


def test_takes_these_values_where_they_are_no_padding() -> None:
    ramp = np.linspace(-2000, 32767, 20**3).reshape(20, 20, 20)
    assert problem(ramp) is None
    metal = np.random.default_rng(0).integers(0, 900, (20, 20, 20))
    metal[0, 0, 0] = 32767
    assert problem(metal) is None, "one saturated voxel"
    computed = np.random.default_rng(0).integers(-1024, 3072, (20, 20, 20))
    computed[:2] = -2000
    assert problem(computed) is None, "the usual padding of a CT is near its values"
