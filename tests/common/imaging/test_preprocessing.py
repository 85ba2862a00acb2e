import numpy as np
import pytest

from common.imaging.geometry import Grid
from common.imaging.preprocessing import (
    nonzero_box,
    normalise_intensity,
    preprocess_image,
    preprocess_label,
    restore_prediction,
    restore_probabilities,
)
from common.imaging.resampling import resample_to_shape
from common.imaging.volume import Source, Volume
from common.plan.plan import IntensityPlan, PreprocessingPlan

PLAIN = IntensityPlan(clip="none", normalise="none")


def volume_of(array, spacing=(1.0, 1.0, 1.0)):
    grid = Grid(array.shape[1:], np.diag([*spacing, 1.0]))
    return Volume(np.ascontiguousarray(array, dtype=np.float32), grid, Source(grid))


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ball(shape, radius=7, centre=None):
    centre = centre or [n / 2 - 0.5 for n in shape]
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < radius**2


def test_window_and_given_statistics():
    channel = np.array([-1000.0, -100, 0, 100, 3000], np.float32).reshape(5, 1, 1)
    plan = IntensityPlan(clip="window", lower=-150, upper=250, normalise="given", mean=50, std=100)
    np.testing.assert_allclose(normalise_intensity(channel, plan).ravel(), [-2, -1.5, -0.5, 0.5, 2])


def test_percentiles_and_statistics_of_the_volume():
    channel = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    result = normalise_intensity(channel, IntensityPlan(lower=1, upper=99)).ravel()
    assert result.mean() == pytest.approx(0, abs=1e-5) and result.std() == pytest.approx(1, abs=1e-5)
    assert (result == result.min()).sum() == 11 and (result == result.max()).sum() == 11  # 0 to 10, 990 to 1000
    np.testing.assert_allclose(np.diff(result[10:991]), np.diff(result[10:991])[0], rtol=1e-2)


def test_large_intensities_keep_their_digits():
    channel = np.full((10, 10, 10), 300_000, np.float32)
    channel[5:] = np.nextafter(np.float32(300_000), np.float32(np.inf))  # the mean lies between two float32 numbers
    result = normalise_intensity(channel, IntensityPlan(clip="none"))
    np.testing.assert_array_equal(result[:5], -1)
    np.testing.assert_array_equal(result[5:], 1)


def test_a_channel_without_contrast_becomes_zero():
    np.testing.assert_array_equal(normalise_intensity(np.full((3, 3, 3), 0.1, np.float32), IntensityPlan()), 0)


@pytest.mark.parametrize("plan", [PLAIN, IntensityPlan(), IntensityPlan(clip="none")])
def test_the_input_is_not_changed(plan):
    channel = noise((4, 4, 4))
    before = channel.copy()
    result = normalise_intensity(channel, plan)
    np.testing.assert_array_equal(channel, before)
    assert not np.shares_memory(result, channel)


def test_crop_is_the_box_of_all_channels_and_comes_before_statistics():
    array = np.zeros((2, 12, 10, 8), np.float32)
    array[0, 3:6, 2:9, 4] = noise((3, 7)) + 5
    array[1, 4:8, 5, 1:6] = noise((4, 5), 1) + 5
    assert nonzero_box(array) == ((3, 2, 1), (8, 9, 6))
    result = preprocess_image(volume_of(array), PreprocessingPlan(intensity=(IntensityPlan(), IntensityPlan())))
    assert result.image.shape == (2, 5, 7, 5)
    np.testing.assert_array_equal(result.image[0], normalise_intensity(array[0, 3:8, 2:9, 1:6], IntensityPlan()))
    label = np.zeros((12, 10, 8), np.uint8)
    label[4, 5, 3] = 1
    cropped = preprocess_label(label, result.geometry, PreprocessingPlan())
    assert cropped.shape == (5, 7, 5) and cropped[1, 3, 2] == 1 and cropped.sum() == 1


def test_nothing_to_crop():
    assert nonzero_box(np.zeros((1, 3, 4, 5), np.float32)) == ((0, 0, 0), (3, 4, 5))
    array = noise((1, 6, 6, 6))
    array[:, :2] = 0
    assert preprocess_image(volume_of(array), PreprocessingPlan(crop="none")).image.shape == (1, 6, 6, 6)


def test_the_target_spacing_is_reached_within_a_voxel():
    volume = volume_of(noise((1, 33, 40, 21)), (0.7, 1.0, 2.0))
    result = preprocess_image(volume, PreprocessingPlan(spacing=(1.0, 1.0, 1.0)))
    assert result.image.shape == (1, 23, 40, 42)
    assert result.geometry.spacing == pytest.approx((33 * 0.7 / 23, 1, 1))
    assert result.geometry.nearest_axes == ()


def test_thick_slices_are_repeated_where_thin_ones_are_interpolated():
    plan = PreprocessingPlan(spacing=(1.0, 1.0, 1.0), intensity=(PLAIN,), crop="none")
    array = noise((1, 10, 10, 4))
    thick = preprocess_image(volume_of(array, (1.0, 1.0, 4.0)), plan)
    np.testing.assert_array_equal(thick.image, array.repeat(4, axis=-1))
    thin = preprocess_image(volume_of(array, (1.0, 1.0, 3.0)), plan)
    np.testing.assert_array_equal(thin.image, resample_to_shape(array, (10, 10, 12), 3))
    label = (array[0] > 0).astype(np.uint8)
    np.testing.assert_array_equal(preprocess_label(label, thick.geometry, plan), label.repeat(4, axis=-1))


@pytest.mark.parametrize("spacing", [(0.8, 1.0, 1.3), (0.5, 0.5, 4.0), (2.0, 1.0, 1.5)])
def test_labels_come_back_to_the_volumes_own_grid(spacing):
    shape = (30, 34, 32)
    array = np.zeros((1, *shape), np.float32)
    array[:, 3:-2, 4:-3, 5:] = noise((1, 25, 27, 27)) + 9
    label = (ball(shape, 9).astype(np.uint8) + ball(shape, 5)).astype(np.uint8)
    plan = PreprocessingPlan(spacing=(1.0, 1.0, 1.0), intensity=(PLAIN,))
    geometry = preprocess_image(volume_of(array, spacing), plan).geometry
    resampled = preprocess_label(label, geometry, plan)
    scores = np.stack([resampled == value for value in range(3)]).astype(np.float32)
    restored = restore_prediction(scores, geometry)
    assert restored.shape == shape and restored.dtype == np.uint8
    for value in (1, 2):
        found, truth = restored == value, label == value
        assert (
            2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.87
        )  # half the resolution loses a surface layer
        np.testing.assert_allclose(np.argwhere(found).mean(0), np.argwhere(truth).mean(0), atol=0.3)


def test_restoring_agrees_with_resampling_all_classes_at_once():
    array = np.zeros((1, 20, 18, 16), np.float32)
    array[:, 2:15, 3:, :9] = 1 + noise((1, 13, 15, 9)) ** 2
    volume = volume_of(array, (1.0, 1.2, 2.0))
    geometry = preprocess_image(volume, PreprocessingPlan(spacing=(1.5, 1.5, 1.5), intensity=(PLAIN,))).geometry
    scores = noise((4, *geometry.shape))
    expected = np.zeros((20, 18, 16), np.uint8)
    expected[2:15, 3:, :9] = resample_to_shape(scores, (13, 15, 9), 1).argmax(0)
    np.testing.assert_array_equal(restore_prediction(scores, geometry), expected)


def test_without_resampling_scores_are_left_as_they_are():
    geometry = preprocess_image(volume_of(noise((1, 5, 6, 7))), PreprocessingPlan()).geometry
    scores = noise((3, 5, 6, 7))
    before = scores.copy()
    np.testing.assert_array_equal(restore_prediction(scores, geometry), before.argmax(0))
    np.testing.assert_array_equal(scores, before)


def test_probabilities_add_up_to_one_everywhere():
    array = np.zeros((1, 16, 14, 12), np.float32)
    array[:, 3:12, 2:13, 1:9] = 5 + noise((1, 9, 11, 8))
    plan = PreprocessingPlan(spacing=(1.3, 0.7, 2.0), intensity=(PLAIN,))
    geometry = preprocess_image(volume_of(array), plan).geometry
    scores = np.exp(noise((3, *geometry.shape)))
    restored = restore_probabilities(scores / scores.sum(0), geometry)
    assert restored.shape == (3, 16, 14, 12)
    np.testing.assert_allclose(restored.sum(0), 1, atol=1e-5)
    assert (restored[0, :3] == 1).all() and (restored[1:, 12:] == 0).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 channels, the plan expects 1"):
        preprocess_image(volume_of(noise((2, 4, 4, 4))), PreprocessingPlan())
    geometry = preprocess_image(volume_of(noise((1, 4, 4, 4))), PreprocessingPlan()).geometry
    with pytest.raises(ValueError, match="shape"):
        restore_prediction(noise((2, 4, 4, 5)), geometry)
    with pytest.raises(ValueError, match="1 classes"):
        restore_prediction(noise((1, 4, 4, 4)), geometry)
