from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from common.imaging.scanner_shift import apply_scanner_shift, smooth_field
from common.plan.scanner_shift import ScannerShift

SPACING = (1.0, 1.0, 1.0)


def image(channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-100, 900, (channels, 24, 20, 16)).astype(np.float32)


def test_no_shift_changes_nothing_and_copies() -> None:
    original = image()
    shifted = apply_scanner_shift(original, SPACING, ScannerShift(), seed=1)
    np.testing.assert_allclose(shifted, original, atol=1e-3)
    assert not np.shares_memory(shifted, original)


def test_leaves_its_input_alone_and_repeats_itself() -> None:
    original = image()
    kept = original.copy()
    shift = ScannerShift(gamma=1.4, bias_field=0.3, noise=0.05, resolution_mm=2.0, scale=3, offset=-5)
    first = apply_scanner_shift(original, SPACING, shift, seed=4)
    np.testing.assert_array_equal(original, kept)
    np.testing.assert_array_equal(first, apply_scanner_shift(original, SPACING, shift, seed=4))
    assert np.abs(first - apply_scanner_shift(original, SPACING, shift, seed=5)).max() > 1
    assert first.dtype == np.float32


def test_gamma_keeps_the_range_of_every_channel() -> None:
    original = image(2)
    original[1] *= 1000
    shifted = apply_scanner_shift(original, SPACING, ScannerShift(gamma=2.0), seed=0)
    for before, after in zip(original.astype(np.float64), shifted, strict=True):
        low, span = before.min(), np.ptp(before)
        np.testing.assert_allclose(after, low + span * ((before - low) / span) ** 2, atol=span * 1e-6)


def test_scale_and_offset_are_the_last_step() -> None:
    original = image()
    plain = apply_scanner_shift(original, SPACING, ScannerShift(gamma=1.5, noise=0.02), seed=0)
    scaled = apply_scanner_shift(original, SPACING, ScannerShift(gamma=1.5, noise=0.02, scale=4, offset=100), seed=0)
    np.testing.assert_allclose(scaled, 4 * plain + 100, rtol=1e-5, atol=0.1)


def test_noise_has_the_given_strength() -> None:
    original = image()
    noise = apply_scanner_shift(original, SPACING, ScannerShift(noise=0.05), seed=0) - original
    assert noise.std() == pytest.approx(0.05 * np.ptp(original), rel=0.05)
    assert abs(noise.mean()) < 0.005 * np.ptp(original)


def test_bias_field_multiplies_by_at_most_its_amplitude() -> None:
    original = np.full((2, 30, 24, 18), 1.0, dtype=np.float32)
    original[:, 0, 0, 0] = 0.0  # the foot of the range, so that the rest is one
    shifted = apply_scanner_shift(original, SPACING, ScannerShift(bias_field=0.4), seed=2)
    field = shifted[0][original[0] > 0]
    assert np.abs(field - 1).max() == pytest.approx(0.4, abs=0.01)
    np.testing.assert_array_equal(shifted[0], shifted[1])
    assert np.abs(np.diff(shifted[0][5:])).max() < 0.15, "smooth"


def test_smooth_fields_are_smooth_and_scaled() -> None:
    field = smooth_field((32, 24, 16), np.random.default_rng(0))
    assert field.shape == (32, 24, 16)
    assert np.abs(field).max() == pytest.approx(1.0)
    assert np.abs(ndimage.gaussian_filter(field, 1.0, mode="reflect") - field).max() < 0.05


def test_resolution_blurs_a_point_to_that_width() -> None:
    """Voxels of 1 x 2 x 4 mm blurred to 4 mm: variances add, so 15, 12 and 0 mm^2 of squared width are added."""
    point = np.zeros((1, 41, 31, 21), dtype=np.float32)
    point[0, 20, 15, 10] = 1000
    blurred = apply_scanner_shift(point, (1.0, 2.0, 4.0), ScannerShift(resolution_mm=4.0), seed=0)[0].astype(float)
    for axis, (spacing, squared_width) in enumerate([(1.0, 15.0), (2.0, 12.0), (4.0, 0.0)]):
        profile = blurred.sum(axis=tuple(other for other in range(3) if other != axis))
        position = spacing * (np.arange(profile.size) - profile.size // 2)
        variance = float((profile * position**2).sum() / profile.sum())
        assert variance == pytest.approx(squared_width / (8 * np.log(2)), rel=0.02, abs=1e-6)


def test_a_constant_image_stays_finite() -> None:
    constant = np.full((1, 4, 4, 4), 5, dtype=np.float32)
    shift = ScannerShift(gamma=2, bias_field=0.5, noise=0.5, scale=2, offset=1)
    np.testing.assert_array_equal(apply_scanner_shift(constant, SPACING, shift, seed=0), 11)


@pytest.mark.parametrize(
    "values",
    [
        {"gamma": 0},
        {"bias_field": 1},
        {"bias_field": -0.1},
        {"noise": -1},
        {"resolution_mm": 0},
        {"scale": 0},
        {"offset": float("inf")},
        {"sharpness": 1},
    ],
)
def test_refuses_values_out_of_range(values) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        ScannerShift(**values)
