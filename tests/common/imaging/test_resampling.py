from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from common.imaging.resampling import (
    interpolation_matrix,
    nearest_indices,
    resample_label,
    resample_to_shape,
    resampled_shape,
    thick_axes,
)


def wave(shape, cycles=(1.0, 2.0, 1.5)):
    """A smooth function of the place within the extent, which continues as its own mirror image beyond it."""
    x, y, z = (np.cos(np.pi * 2 * k * (np.arange(n) + 0.5) / n) for n, k in zip(shape, cycles, strict=True))
    return (x[:, None, None] * y[:, None] * z).astype(np.float32)


def slow_linear_label(label, shape):
    """Trilinear weights of each label, voxel by voxel."""
    result = np.zeros(shape, np.uint8)
    for out in product(*(range(n) for n in shape)):
        votes = {}
        places = [(i + 0.5) * n / m - 0.5 for i, n, m in zip(out, label.shape, shape, strict=True)]
        for corner in product((0, 1), repeat=3):
            weight, index = 1.0, []
            for place, side, n in zip(places, corner, label.shape, strict=True):
                low = int(np.floor(place))
                weight *= place - low if side else 1 - (place - low)
                index.append(min(max(low + side, 0), n - 1))
            value = int(label[tuple(index)])
            votes[value] = votes.get(value, 0.0) + weight
        result[out] = max(votes, key=lambda value: (round(votes[value], 9), value))
    return result


@pytest.mark.parametrize("shape", [(35, 61, 50), (20, 37, 24), (29, 40, 33)])
def test_cubic_follows_an_analytic_function_up_and_down(shape):
    source = (24, 40, 30)
    assert np.abs(resample_to_shape(wave(source), shape, 3) - wave(shape)).max() < 2e-3
    # Linear interpolation cannot come near: the bound above tells them apart.
    assert np.abs(resample_to_shape(wave(source), shape, 1) - wave(shape)).max() > 1e-2


def test_cubic_error_falls_with_the_fourth_power_of_the_spacing():
    errors = []
    for n in (16, 32):
        fine = interpolation_matrix(n, 5 * n, 3).astype(float) @ wave((n, 1, 1), (2, 0, 0))[:, 0, 0]
        errors.append(np.abs(fine - wave((5 * n, 1, 1), (2, 0, 0))[:, 0, 0]).max())
    assert 12 < errors[0] / errors[1] < 20


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(17, 9, 23), (7, 30, 5), (1, 2, 40)])
def test_agrees_with_scipy(order, shape):
    image = np.random.default_rng(0).normal(size=(12, 15, 10)).astype(np.float32)
    factors = [m / n for m, n in zip(shape, image.shape, strict=True)]
    expected = ndimage.zoom(image.astype(np.float64), factors, order=order, mode="reflect", grid_mode=True)
    assert expected.shape == shape
    np.testing.assert_allclose(resample_to_shape(image, shape, order), expected, atol=2e-5)


@given(old=st.integers(1, 40), new=st.integers(1, 90), order=st.sampled_from([1, 3]))
@settings(max_examples=60, deadline=None)
def test_a_constant_stays_constant(old, new, order):
    np.testing.assert_allclose(interpolation_matrix(old, new, order).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_places_in_mm_stay_where_they_are(order):
    """Resampling each voxel's own position in mm gives the positions of the new voxels: outer faces are aligned."""
    old, new, spacing = 40, 25, 0.8
    position = (np.arange(old, dtype=np.float32) + 0.5) * spacing
    image = np.broadcast_to(position[:, None, None], (old, 2, 2))
    result = resample_to_shape(np.ascontiguousarray(image), (new, 2, 2), order)[:, 0, 0]
    expected = (np.arange(new) + 0.5) * (old * spacing / new)
    np.testing.assert_allclose(result[4:-4], expected[4:-4], atol=2e-3)


def test_channels_are_resampled_each_for_itself():
    image = np.random.default_rng(1).normal(size=(3, 6, 7, 8)).astype(np.float32)
    result = resample_to_shape(image, (9, 7, 5), 3)
    for channel in range(3):
        np.testing.assert_allclose(result[channel], resample_to_shape(image[channel], (9, 7, 5), 3), atol=1e-5)


def test_the_same_shape_is_left_alone():
    image, label = np.ones((1, 3, 4, 5), np.float32), np.ones((3, 4, 5), np.uint8)
    assert resample_to_shape(image, (3, 4, 5), 3) is image
    assert resample_label(label, (3, 4, 5), "linear") is label


@pytest.mark.parametrize("shape", [(4, 4, 4), (8, 16, 8), (11, 5, 7), (16, 3, 19)])
def test_linear_labels_agree_with_voting_voxel_by_voxel(shape):
    label = np.random.default_rng(2).choice(np.array([0, 1, 2, 5], np.uint8), size=(8, 8, 9))
    np.testing.assert_array_equal(resample_label(label, shape, "linear"), slow_linear_label(label, shape))


def test_linear_labels_make_no_label_between_two_others():
    label = np.zeros((10, 10, 10), np.uint8)
    label[5:] = 4
    assert set(np.unique(resample_label(label, (23, 10, 10), "linear"))) == {0, 4}


def test_a_plane_survives_halving_the_resolution():
    label = np.zeros((8, 8, 8), np.uint8)
    label[4] = 1
    assert resample_label(label, (4, 8, 8), "linear")[2].all()


@given(old=st.integers(1, 50), new=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_nearest_takes_the_voxel_that_holds_the_centre(old, new):
    for i, index in enumerate(nearest_indices(old, new)):
        assert index / old <= (i + 0.5) / new < (index + 1) / old + 1e-12


def test_nearest_labels():
    label = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    doubled = resample_label(label, (4, 6, 8), "nearest")
    np.testing.assert_array_equal(doubled, label.repeat(2, 0).repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_labels_come_back_from_a_finer_grid(mode):
    x, y, z = np.ogrid[:20, :24, :18]
    label = ((x - 9) ** 2 + (y - 11) ** 2 + (z - 8) ** 2 < 40).astype(np.uint8)
    label[(x - 9) ** 2 + (y - 15) ** 2 + (z - 8) ** 2 < 12] = 2
    finer = resample_label(label, (40, 48, 36), mode)
    np.testing.assert_array_equal(resample_label(finer, label.shape, mode), label)


@pytest.mark.parametrize("order", [1, 3])
def test_along_a_thick_axis_slices_are_repeated_not_mixed(order):
    image = np.random.default_rng(3).normal(size=(1, 8, 9, 3)).astype(np.float32)
    result = resample_to_shape(image, (12, 9, 15), order, nearest_axes=(2,))
    in_plane = resample_to_shape(image, (12, 9, 3), order)
    np.testing.assert_allclose(result, in_plane.repeat(5, axis=-1), atol=1e-6)
    assert not np.allclose(result, resample_to_shape(image, (12, 9, 15), order), atol=1e-2)


def test_thick_axes_and_shapes():
    assert thick_axes((1.0, 1.0, 3.0), 3.0) == ()
    assert thick_axes((1.0, 1.0, 3.1), 3.0) == (2,)
    assert thick_axes((5.0, 1.0, 5.0), 3.0) == (0, 2)
    assert resampled_shape((40, 50, 10), (1.0, 0.5, 5.0), (2.0, 1.0, 1.0)) == (20, 25, 50)
    assert resampled_shape((1, 1, 1), (1.0, 1.0, 1.0), (9.0, 1.0, 1.0)) == (1, 1, 1)
