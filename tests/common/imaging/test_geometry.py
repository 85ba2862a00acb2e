from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from common.imaging.geometry import Grid, reorient_from_ras, reorient_to_ras

CODES = ["RAS", "LPS", "LAS", "PIR", "SAL", "IPL", "ARS"]
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
# Under 25 degrees in all, the nearest anatomical axes are beyond doubt.
rotations = st.tuples(*[st.floats(-12, 12)] * 3).map(lambda a: Rotation.from_euler("xyz", a, degrees=True).as_matrix())


def tilted_grid(spacing: tuple[float, float, float], rotation: np.ndarray, code: str) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = (-30.5, 12.25, 7.0)
    return Grid((4, 5, 6), affine).oriented(code)


def test_copies_the_affine_and_keeps_it_read_only() -> None:
    affine = np.eye(4)
    grid = Grid((2, 3, 4), affine)
    affine[0, 0] = 9.0
    assert grid.spacing == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 9.0


@settings(max_examples=40, deadline=None)
@given(spacings, rotations, st.sampled_from(CODES))
def test_orientation_and_spacing_agree_with_nibabel(spacing, rotation, code) -> None:
    grid = tilted_grid(spacing, rotation, code)
    assert grid.orientation == code == "".join(nibabel.aff2axcodes(grid.affine))
    np.testing.assert_allclose(grid.spacing, nibabel.affines.voxel_sizes(grid.affine))
    np.testing.assert_allclose(grid.voxel_volume_ml, np.prod(spacing) / 1000)


@settings(max_examples=40, deadline=None)
@given(spacings, rotations, st.sampled_from(CODES))
def test_reordering_to_ras_agrees_with_nibabel_and_can_be_undone(spacing, rotation, code) -> None:
    grid = tilted_grid(spacing, rotation, code)
    array = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(array.astype(np.int16), grid.affine))
    found = reorient_to_ras(array, grid)
    np.testing.assert_array_equal(found, np.asarray(expected.dataobj))
    np.testing.assert_allclose(grid.to_ras().affine, expected.affine, atol=1e-9)
    assert found.base is not None, "a view, not a copy"
    np.testing.assert_array_equal(reorient_from_ras(found, grid), array)
    two_channels = np.stack([array, -array])
    np.testing.assert_array_equal(reorient_from_ras(reorient_to_ras(two_channels, grid), grid), two_channels)


def test_every_voxel_keeps_its_place_in_the_patient() -> None:
    grid = tilted_grid((1.0, 2.0, 3.0), np.eye(3), "PIR")
    ras = grid.to_ras()
    position = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")).astype(float)
    world = np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], position) + grid.affine[:3, 3, None, None, None]
    position = np.stack(np.meshgrid(*map(np.arange, ras.shape), indexing="ij")).astype(float)
    expected = np.einsum("ij,jxyz->ixyz", ras.affine[:3, :3], position) + ras.affine[:3, 3, None, None, None]
    np.testing.assert_allclose(reorient_to_ras(world, grid), expected)


def test_a_turn_by_45_degrees_is_not_decided_by_the_last_digits() -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", 45, degrees=True).as_matrix()
    for noise in (-1e-7, 1e-7):
        nudged = turn.copy()
        nudged[0, 0] += noise
        nudged[1, 1] += noise
        assert Grid((3, 4, 5), nudged).orientation == Grid((3, 4, 5), turn).orientation


def test_matches_compares_the_worst_corner() -> None:
    grid = Grid((101, 11, 11), np.eye(4))
    assert grid.matches(Grid((101, 11, 11), np.eye(4)))
    assert not grid.matches(Grid((101, 11, 12), np.eye(4)))
    shifted = np.eye(4)
    shifted[0, 3] = 0.002
    assert not grid.matches(Grid(grid.shape, shifted))
    assert grid.matches(Grid(grid.shape, shifted), affine_tolerance_mm=0.0021)
    stretched = np.diag([1.00003, 1, 1, 1])  # 0.003 mm at the far end, 0.00003 mm at the first voxel
    assert grid.displacement_mm(Grid(grid.shape, stretched)) == pytest.approx(0.003)
    assert not grid.matches(Grid(grid.shape, stretched))


def with_entry(row: int, column: int, value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "text"),
    [
        (with_entry(1, 1, 0.0), "spacing is zero"),
        (with_entry(0, 3, np.nan), "NaN or infinite"),
        (with_entry(3, 0, 1.0), "last row"),
        (np.eye(3), "4x4"),
        (with_entry(0, 2, 0.1), "sheared, 5"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
    ],
)
def test_refuses_unusable_affines(affine, text) -> None:
    with pytest.raises(ValueError, match=text):
        Grid((3, 3, 3), affine)


def test_refuses_other_than_three_axes() -> None:
    with pytest.raises(ValueError, match="three axes"):
        Grid((3, 3, 0), np.eye(4))
    with pytest.raises(ValueError, match="orientation"):
        Grid((3, 3, 3), np.eye(4)).oriented("RLS")
