from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from torch import nn

from common.imaging.sliding_window import (
    WindowOptions,
    gaussian_weights,
    predict_labels,
    sliding_window,
    window_starts,
)

FLOAT32 = WindowOptions(precision="float32")


@pytest.fixture
def network() -> nn.Module:
    """Three classes, and outputs that depend on where a voxel lies in its window, as padding makes them do."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(2, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.LeakyReLU(), nn.Conv3d(6, 3, 3, padding=1)]
    return nn.Sequential(*layers).eval()


def _image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("patch", [(16, 16, 16), (8, 20, 5), (64, 2, 1)])
def test_weights_are_monais(patch):
    expected = compute_importance_map(patch, mode="gaussian", sigma_scale=0.125)
    torch.testing.assert_close(gaussian_weights(patch), expected, rtol=1e-6, atol=0)


@given(st.integers(1, 60), st.integers(0, 100), st.floats(0, 0.99))
def test_window_positions_are_monais(patch, longer, overlap):
    size = patch + longer
    step = patch if longer == 0 else max(1, int(patch * (1 - overlap)))
    expected = [s[0].start for s in dense_patch_slices((size,), (patch,), (step,))]
    assert window_starts(size, patch, overlap) == expected


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap is a fraction"):
        window_starts(10, 5, overlap)


@pytest.mark.parametrize(
    ("shape", "patch", "overlap"),
    [
        ((24, 20, 17), (8, 8, 8), 0.5),
        ((16, 16, 16), (16, 16, 16), 0.5),
        ((5, 30, 11), (8, 8, 16), 0.25),
        ((7, 7, 7), (16, 12, 8), 0.5),
        ((17, 9, 9), (8, 8, 8), 0.0),
        ((20, 9, 12), (8, 6, 8), 0.8),
    ],
)
def test_logits_and_labels_are_monais(network, shape, patch, overlap):
    image = _image(2, *shape)
    with torch.inference_mode():
        expected = sliding_window_inference(
            torch.from_numpy(image)[None], patch, 1, network, overlap=overlap, mode="gaussian"
        )[0].numpy()
    options = WindowOptions(overlap=overlap, precision="float32")
    logits = sliding_window(network, image, patch, options)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    labels = predict_labels(network, image, patch, options)
    assert labels.dtype == np.uint8
    certain = np.diff(np.sort(expected, axis=0)[-2:], axis=0)[0] > 1e-4
    assert certain.mean() > 0.99
    np.testing.assert_array_equal(labels[certain], expected.argmax(axis=0)[certain])


def test_a_model_that_returns_its_input_gives_the_image_back():
    image = _image(3, 19, 12, 23)
    logits = sliding_window(nn.Identity(), image, (8, 16, 8), WindowOptions(overlap=0.6, precision="float32"))
    np.testing.assert_allclose(logits, image, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_batches_of_windows_change_nothing(network, batch_size):
    image = _image(2, 20, 17, 12)
    one = sliding_window(network, image, (8, 8, 8), WindowOptions(precision="float32", batch_size=1))
    many = sliding_window(network, image, (8, 8, 8), WindowOptions(precision="float32", batch_size=batch_size))
    np.testing.assert_allclose(many, one, atol=1e-5)


@pytest.mark.parametrize("axes", [(0,), (0, 2), (0, 1, 2)])
def test_mirroring_averages_over_every_combination_of_axes(network, axes):
    image = _image(2, 10, 11, 8)
    flipped = []
    for count in range(len(axes) + 1):
        for subset in itertools.combinations(axes, count):
            dimensions = [axis + 1 for axis in subset]
            mirrored = np.flip(image, dimensions).copy()
            flipped.append(np.flip(sliding_window(network, mirrored, (10, 11, 8), FLOAT32), dimensions))
    assert len(flipped) == 2 ** len(axes)
    result = sliding_window(network, image, (10, 11, 8), WindowOptions(precision="float32", mirror_axes=axes))
    np.testing.assert_allclose(result, np.mean(flipped, axis=0), atol=1e-5)


def test_bfloat16_is_close_to_float32(network):
    image = _image(2, 12, 12, 12)
    exact = sliding_window(network, image, (8, 8, 8), FLOAT32)
    rounded = sliding_window(network, image, (8, 8, 8), WindowOptions(precision="bfloat16"))
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1


def test_reads_a_read_only_memory_map_of_half_precision(network, tmp_path):
    image = _image(2, 12, 9, 10).astype(np.float16)
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    expected = sliding_window(network, image.astype(np.float32), (8, 8, 8), FLOAT32)
    result = sliding_window(network, mapped, (8, 8, 8), FLOAT32)
    np.testing.assert_array_equal(result, expected)


def test_fills_the_array_that_is_given(network):
    image = _image(2, 12, 9, 10)
    room = np.full((3, 12, 9, 10), np.nan, dtype=np.float32)
    assert sliding_window(network, image, (8, 8, 8), out=room) is room
    np.testing.assert_array_equal(room, sliding_window(network, image, (8, 8, 8)))


def test_leaves_the_image_as_it_is(network):
    image = _image(2, 12, 9, 10)
    before = image.copy()
    sliding_window(network, image, (16, 8, 8), WindowOptions(mirror_axes=(0,)))
    np.testing.assert_array_equal(image, before)


class _Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x)


def test_runs_in_evaluation_mode_and_gives_training_mode_back():
    model = _Dropping().train()
    image = _image(1, 8, 8, 8)
    np.testing.assert_allclose(sliding_window(model, image, (8, 8, 8), FLOAT32), image, atol=1e-6)
    assert model.training


def test_gives_training_mode_back_when_a_pass_fails():
    model = nn.Sequential(nn.Conv3d(2, 3, 1)).train()
    with pytest.raises(RuntimeError):
        sliding_window(model, _image(1, 8, 8, 8), (8, 8, 8))
    assert model.training


def test_gradients_can_still_be_computed_afterwards(network):
    sliding_window(network, _image(2, 8, 8, 8), (8, 8, 8))
    network(torch.from_numpy(_image(1, 2, 8, 8, 8))).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_progress_ends_with_all_windows(network):
    seen: list[tuple[int, int]] = []
    options = WindowOptions(batch_size=3)
    predict_labels(
        network, _image(2, 12, 8, 12), (8, 8, 8), options, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 4), (4, 4)]


def test_an_image_without_channels_is_refused(network):
    with pytest.raises(ValueError, match="channels, x, y, z"):
        sliding_window(network, _image(8, 8, 8), (8, 8, 8))


def test_more_classes_than_a_byte_are_refused():
    with pytest.raises(ValueError, match="256"):
        predict_labels(nn.Conv3d(1, 257, 1), _image(1, 4, 4, 4), (4, 4, 4))


LONG_VOLUME = """
import resource, numpy, torch
from common.imaging.sliding_window import WindowOptions, predict_labels
torch.set_num_threads(1)
model = torch.nn.Conv3d(1, 64, 1)
options = WindowOptions(overlap=0, precision="float32")
def run(planes):
    predict_labels(model, numpy.zeros((1, planes, 32, 32), numpy.float32), (32, 32, 32), options)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
short = run(64)
print((run(2048) - short) / 1024)
"""


def test_memory_for_labels_does_not_grow_with_the_scores_of_the_volume():
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", LONG_VOLUME]
    result = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    scores_mb = 64 * 2048 * 32 * 32 * 4 / 2**20
    assert float(result.stdout) < scores_mb / 8
