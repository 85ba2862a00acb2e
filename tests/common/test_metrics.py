from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import astuple
from typing import Any

import monai.metrics
import numpy as np
import pytest
import surface_distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from common.metrics import (
    SurfaceMetrics,
    assd_mm,
    case_metrics,
    dice,
    hd95_mm,
    nsd,
    overlap,
    precision,
    sensitivity,
    specificity,
    surface,
    surface_metrics,
    volume_error,
)

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

SPACINGS: list[Spacing] = [(1.0, 1.0, 1.0), (0.7, 0.8, 3.1)]
VOXEL_COUNT_METRICS = (dice, sensitivity, specificity, precision, volume_error)


def empty(shape: tuple[int, ...] = (5, 6, 7)) -> Mask:
    return np.zeros(shape, dtype=bool)


def box(*corners: tuple[int, int], shape: tuple[int, int, int] = (12, 12, 12)) -> Mask:
    mask = empty(shape)
    mask[tuple(slice(low, high) for low, high in corners)] = True
    return mask


def blob(seed: int, shape: tuple[int, int, int] = (28, 30, 26)) -> Mask:
    """A bumpy ball that differs a little from seed to seed and may touch the edge of the array."""
    random = np.random.default_rng(seed)
    grid = np.indices(shape) - np.array([14, 15, 13]).reshape(3, 1, 1, 1) - random.uniform(-2, 2, (3, 1, 1, 1))
    waves = sum(np.sin(random.uniform(0.2, 0.6) * axis + random.uniform(0, 6)) for axis in grid)
    return np.asarray(np.sqrt((grid**2).sum(0)) + waves < random.uniform(7, 15))


def slow_surface(mask: Mask) -> list[tuple[int, ...]]:
    def has(voxel: tuple[int, ...]) -> bool:
        return all(0 <= i < n for i, n in zip(voxel, mask.shape, strict=True)) and bool(mask[voxel])

    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    return [
        voxel
        for voxel in itertools.product(*map(range, mask.shape))
        if has(voxel) and not all(has(tuple(np.add(voxel, step))) for step in steps)
    ]


def slow_surface_metrics(prediction: Mask, truth: Mask, spacing: Spacing, tolerance: float) -> SurfaceMetrics:
    """Every surface voxel against every other."""

    def distances(these: list[tuple[int, ...]], those: list[tuple[int, ...]]) -> list[float]:
        return [
            min(math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(p, q, spacing, strict=True))) for q in those)
            for p in these
        ]

    predicted, true = slow_surface(prediction), slow_surface(truth)
    there, back = distances(predicted, true), distances(true, predicted)
    both = there + back
    return SurfaceMetrics(
        hd95_mm=max(float(np.percentile(there, 95)), float(np.percentile(back, 95))),
        assd_mm=sum(both) / len(both),
        nsd=sum(d <= tolerance + 1e-6 for d in both) / len(both),
        tolerance_mm=tolerance,
    )


def test_overlap_counts_of_a_tiny_case() -> None:
    prediction = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    truth = np.array([0, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
    counts = overlap(prediction, truth)
    assert (counts.true_positives, counts.false_positives) == (2, 1)
    assert (counts.false_negatives, counts.true_negatives) == (2, 3)
    assert dice(prediction, truth) == 4 / 7
    assert sensitivity(prediction, truth) == 2 / 4
    assert specificity(prediction, truth) == 3 / 4
    assert precision(prediction, truth) == 2 / 3
    assert volume_error(prediction, truth) == -1 / 4


def test_single_voxels_are_as_far_apart_as_their_centres() -> None:
    prediction, truth = empty(), empty()
    prediction[0, 1, 2] = truth[3, 5, 2] = True
    metrics = surface_metrics(prediction, truth, (1.0, 0.5, 9.0), tolerance_mm=3.0)
    assert metrics.hd95_mm == metrics.assd_mm == pytest.approx(math.hypot(3, 2))
    assert metrics.nsd == 0


def test_parallel_plates_along_each_axis() -> None:
    spacing = (0.7, 1.1, 2.5)
    for axis, step in enumerate(spacing):
        prediction, truth = empty((6, 6, 6)), empty((6, 6, 6))
        np.moveaxis(prediction, axis, 0)[1] = True
        np.moveaxis(truth, axis, 0)[4] = True
        assert hd95_mm(prediction, truth, spacing) == pytest.approx(3 * step)
        assert assd_mm(prediction, truth, spacing) == pytest.approx(3 * step)


def test_hd95_takes_the_worse_direction_and_ignores_its_worst_twentieth() -> None:
    truth = empty((101, 3, 3))
    truth[:, 1, 1] = True
    prediction = truth.copy()
    prediction[10:, 1, 1] = False  # 91 of 101 truth voxels are missed: they are 1, 2, ..., 91 away
    expected = float(np.percentile([0.0] * 10 + list(range(1, 92)), 95))
    assert hd95_mm(prediction, truth, (1.0, 1.0, 1.0)) == pytest.approx(expected)
    assert hd95_mm(truth, prediction, (1.0, 1.0, 1.0)) == pytest.approx(expected)


def test_tolerance_is_inclusive_in_spite_of_rounding() -> None:
    prediction, truth = empty((9, 1, 1)), empty((9, 1, 1))
    prediction[3], truth[6] = True, True
    assert 6 * 0.1 - 3 * 0.1 > 0.3
    assert nsd(prediction, truth, (0.1, 1.0, 1.0), tolerance_mm=0.3) == 1
    assert nsd(prediction, truth, (0.1, 1.0, 1.0), tolerance_mm=0.29) == 0


def test_surface_of_a_cube_is_hollow_and_the_edge_of_the_array_is_outside() -> None:
    assert surface(box((2, 7), (2, 7), (2, 7))).sum() == 5**3 - 3**3
    full = np.ones((4, 5, 6), dtype=bool)
    assert surface(full).sum() == 4 * 5 * 6 - 2 * 3 * 4
    assert surface(np.ones((4, 5, 1), dtype=bool)).all()


def test_identical_masks_are_perfect() -> None:
    mask = blob(0)
    metrics = surface_metrics(mask, mask, (1.0, 2.0, 3.0), tolerance_mm=0.0)
    assert metrics == SurfaceMetrics(hd95_mm=0.0, assd_mm=0.0, nsd=1.0, tolerance_mm=0.0)
    assert [metric(mask, mask) for metric in VOXEL_COUNT_METRICS] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("prediction_empty", "truth_empty", "counted", "apart", "agreement"),
    [
        (True, True, [1, math.nan, 1, math.nan, 0], 0, 1),
        (True, False, [0, 0, 1, math.nan, -1], math.inf, 0),
        (False, True, [0, math.nan, 1 - 8 / 210, 0, math.inf], math.inf, 0),
    ],
)
def test_empty_masks(
    prediction_empty: bool, truth_empty: bool, counted: list[float], apart: float, agreement: float
) -> None:
    some = box((1, 3), (1, 3), (1, 3), shape=(5, 6, 7))
    prediction, truth = (empty() if prediction_empty else some), (empty() if truth_empty else some)
    found = [metric(prediction, truth) for metric in VOXEL_COUNT_METRICS]
    assert found == pytest.approx(counted, nan_ok=True)
    assert surface_metrics(prediction, truth, (1.0, 1.0, 1.0), 2.0) == SurfaceMetrics(apart, apart, agreement, 2.0)
    assert hd95_mm(prediction, truth, (1.0, 1.0, 1.0)) == apart
    assert assd_mm(prediction, truth, (1.0, 1.0, 1.0)) == apart
    assert nsd(prediction, truth, (1.0, 1.0, 1.0), 2.0) == agreement


def test_full_truth_has_no_specificity() -> None:
    assert math.isnan(specificity(empty(), ~empty()))


@settings(max_examples=60, deadline=None)
@given(
    masks=arrays(bool, st.tuples(st.just(2), *[st.integers(1, 6)] * 3)),
    spacing=st.tuples(*[st.sampled_from([0.3, 0.75, 1.0, 3.0])] * 3),
    tolerance=st.sampled_from([0.0, 0.75, 1.5]),
)
def test_surface_metrics_equal_brute_force(masks: Mask, spacing: Spacing, tolerance: float) -> None:
    prediction, truth = masks
    prediction[0, 0, 0] = truth[-1, -1, -1] = True
    metrics = surface_metrics(prediction, truth, spacing, tolerance)
    expected = slow_surface_metrics(prediction, truth, spacing, tolerance)
    assert [metrics.hd95_mm, metrics.assd_mm, metrics.nsd] == pytest.approx(
        [expected.hd95_mm, expected.assd_mm, expected.nsd]
    )


@settings(max_examples=40, deadline=None)
@given(masks=arrays(bool, st.tuples(st.just(2), *[st.integers(1, 5)] * 3)), pad=st.integers(1, 4))
def test_symmetric_and_independent_of_empty_space_around(masks: Mask, pad: int) -> None:
    prediction, truth = masks
    spacing = (1.0, 0.5, 2.0)
    expected = pytest.approx(astuple(surface_metrics(prediction, truth, spacing, 1.0)))
    assert astuple(surface_metrics(truth, prediction, spacing, 1.0)) == expected
    assert astuple(surface_metrics(np.pad(prediction, pad), np.pad(truth, pad), spacing, 1.0)) == expected
    assert dice(prediction, truth) == dice(truth, prediction)


def monai_surface_metrics(prediction: Mask, truth: Mask, spacing: Spacing, tolerance: float) -> list[float]:
    masks = {"y_pred": torch.from_numpy(prediction)[None, None], "y": torch.from_numpy(truth)[None, None]}
    common: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    values = (
        monai.metrics.compute_hausdorff_distance(**masks, percentile=95, **common),
        monai.metrics.compute_average_surface_distance(**masks, symmetric=True, **common),
        monai.metrics.compute_surface_dice(**masks, class_thresholds=[tolerance], **common),
    )
    return [float(value) for value in values]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_monai(seed: int, spacing: Spacing) -> None:
    prediction, truth = blob(2 * seed), blob(2 * seed + 1)
    metrics = surface_metrics(prediction, truth, spacing, tolerance_mm=1.5)
    expected = monai_surface_metrics(prediction, truth, spacing, tolerance=1.5)
    assert [metrics.hd95_mm, metrics.assd_mm, metrics.nsd] == pytest.approx(expected, rel=1e-5)

    counts = monai.metrics.get_confusion_matrix(
        torch.from_numpy(prediction)[None, None].float(), torch.from_numpy(truth)[None, None].float()
    )
    for name, metric in [("sensitivity", sensitivity), ("specificity", specificity), ("precision", precision)]:
        assert metric(prediction, truth) == pytest.approx(
            float(monai.metrics.compute_confusion_matrix_metric(name, counts))
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_deepmind_within_a_voxel(seed: int, spacing: Spacing) -> None:
    prediction, truth = blob(2 * seed), blob(2 * seed + 1)
    metrics = surface_metrics(prediction, truth, spacing, tolerance_mm=3.0)
    theirs = surface_distance.compute_surface_distances(truth, prediction, spacing)
    voxel = math.hypot(*spacing)
    assert abs(metrics.hd95_mm - surface_distance.compute_robust_hausdorff(theirs, 95)) <= voxel
    assert abs(metrics.assd_mm - np.mean(surface_distance.compute_average_surface_distance(theirs))) <= voxel
    lower, upper = (
        surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        for tolerance in (max(3.0 - voxel, 0.0), 3.0 + voxel)
    )
    assert lower <= metrics.nsd <= upper
    assert dice(prediction, truth) == pytest.approx(surface_distance.compute_dice_coefficient(truth, prediction))


def test_case_metrics_equal_the_single_functions() -> None:
    truth = np.zeros((28, 30, 26), dtype=np.uint8)
    prediction = np.zeros((28, 30, 26), dtype=np.int16)
    truth[blob(0)], prediction[blob(1)] = 1, 1
    truth[10:14, 10:14, 10:14], prediction[11:14, 10:15, 10:14] = 2, 2
    truth[0, 0, 0] = 3
    spacing = (0.7, 0.8, 3.1)
    metrics = case_metrics(prediction, truth, [1, 2, 3, 4], spacing, tolerance_mm=1.0)
    assert list(metrics) == [1, 2, 3, 4]
    for label, found in metrics.items():
        masks = prediction == label, truth == label
        expected = {metric.__name__: metric(*masks) for metric in VOXEL_COUNT_METRICS}
        expected |= {"hd95_mm": hd95_mm(*masks, spacing), "assd_mm": assd_mm(*masks, spacing)}
        expected |= {"nsd_at_1mm": nsd(*masks, spacing, 1.0)}
        assert found == pytest.approx(expected, nan_ok=True)
    assert metrics[4]["dice"] == 1
    assert "nsd_at_2.5mm" in case_metrics(prediction, truth, [1], spacing, tolerance_mm=2.5)[1]


def test_does_not_change_its_input() -> None:
    prediction, truth = blob(0), blob(1)
    for mask in (prediction, truth):
        mask.flags.writeable = False
    surface_metrics(prediction, truth, (1.0, 1.0, 1.0), 1.0)


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing", "tolerance", "message"),
    [
        (empty(), empty((5, 6, 8)), (1, 1, 1), 1, "shapes differ"),
        (empty().astype(np.uint8), empty(), (1, 1, 1), 1, "boolean"),
        (empty((5, 6)), empty((5, 6)), (1, 1, 1), 1, "3 axes"),
        (empty(), empty(), (1, 1), 1, "3 spacings"),
        (empty(), empty(), (1, 0, 1), 1, "spacing must be positive"),
        (empty(), empty(), (1, math.nan, 1), 1, "spacing must be positive"),
        (empty(), empty(), (1, 1, 1), -1, "tolerance"),
        (empty(), empty(), (1, 1, 1), math.nan, "tolerance"),
    ],
)
def test_input_without_meaning_is_refused(
    prediction: Any, truth: Any, spacing: Any, tolerance: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        surface_metrics(prediction, truth, spacing, tolerance)


def test_label_maps_that_do_not_fit_are_refused() -> None:
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match="shapes differ"):
        case_metrics(label, label[1:], [1], (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="integers"):
        case_metrics(label, label.astype(np.float32), [1], (1.0, 1.0, 1.0))  # type: ignore[arg-type]


def test_import_does_not_load_torch() -> None:
    code = "import sys, common.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
