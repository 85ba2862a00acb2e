"""HD95, average surface distance and surface Dice of masks of 128^3 voxels, against MONAI.

Run as ``python -m tests.benchmarks.surface_metrics``. All contestants see the same masks in turn, on one thread and by
processor time, so that other work on the machine disturbs them little; the figure is MONAI's time over ours, summed
over all cases. DeepMind's surface-distance, which measures between surface elements, is shown beside them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import surface_distance  # type: ignore[import-untyped]
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from numpy.typing import NDArray

from common.metrics import surface_metrics

Mask = NDArray[np.bool_]

SIZE = 128
SPACING_MM = (1.0, 1.0, 1.0)
TOLERANCE_MM = 2.0
REPEATS = 5


def bumpy_ball(radius: float, shift: float, bumps: float, seed: int) -> Mask:
    """A ball around the middle of the volume, moved by ``shift`` and with waves of height ``bumps``, in voxels."""
    random = np.random.default_rng(seed)
    grid = np.indices((SIZE, SIZE, SIZE), dtype=np.float32) - SIZE / 2
    away = random.standard_normal(3)
    grid -= (shift * away / np.linalg.norm(away)).astype(np.float32).reshape(3, 1, 1, 1)
    waves = sum(np.sin(random.uniform(0.1, 0.5) * axis + random.uniform(0, 6)) for axis in grid)
    return np.asarray(np.sqrt((grid**2).sum(0)) + bumps * waves < radius)


def make_cases() -> dict[str, tuple[Mask, Mask]]:
    """Pairs of prediction and truth, from a good segmentation of a small organ to a bad one of a large."""
    return {
        "small, good": (bumpy_ball(14, 0, 0.5, 0), bumpy_ball(14, 0.5, 0.7, 0)),
        "medium, good": (bumpy_ball(30, 0, 1.0, 1), bumpy_ball(30, 1, 1.4, 1)),
        "medium, bad": (bumpy_ball(30, 0, 2.0, 2), bumpy_ball(26, 8, 2.0, 3)),
        "large, good": (bumpy_ball(50, 0, 1.0, 4), bumpy_ball(50, 1, 1.4, 4)),
        "large, bad": (bumpy_ball(50, 0, 2.0, 5), bumpy_ball(40, 8, 2.0, 6)),
    }


def ours(prediction: Mask, truth: Mask) -> tuple[float, float, float]:
    """Fedvox: one pass."""
    metrics = surface_metrics(prediction, truth, SPACING_MM, TOLERANCE_MM)
    return metrics.hd95_mm, metrics.assd_mm, metrics.nsd


def monai_metrics(prediction: Mask, truth: Mask) -> tuple[float, float, float]:
    """MONAI: its three functions."""
    predicted, true = torch.from_numpy(prediction)[None, None], torch.from_numpy(truth)[None, None]
    spacing = list(SPACING_MM)
    hd95 = compute_hausdorff_distance(predicted, true, include_background=True, percentile=95, spacing=spacing)
    assd = compute_average_surface_distance(predicted, true, include_background=True, symmetric=True, spacing=spacing)
    nsd = compute_surface_dice(predicted, true, [TOLERANCE_MM], include_background=True, spacing=spacing)
    return float(hd95), float(assd), float(nsd)


def deepmind_metrics(prediction: Mask, truth: Mask) -> tuple[float, float, float]:
    """DeepMind: surface elements, weighted by area."""
    distances = surface_distance.compute_surface_distances(truth, prediction, SPACING_MM)
    return (
        float(surface_distance.compute_robust_hausdorff(distances, 95)),
        float(np.mean(surface_distance.compute_average_surface_distance(distances))),
        float(surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)),
    )


def main() -> None:
    """Time all contestants in turn and print a table."""
    contestants: dict[str, Callable[[Mask, Mask], tuple[float, float, float]]] = {
        "fedvox": ours,
        "monai": monai_metrics,
        "deepmind": deepmind_metrics,
    }
    # Most of MONAI's time is single-threaded SciPy; the rest only suffers from threads on tensors this small.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # both peers warn about their own use of old interfaces
    total = dict.fromkeys(contestants, 0.0)
    print(f"{'case':14} {'contestant':10} {'seconds':>8} {'hd95 mm':>8} {'assd mm':>8} {'nsd':>7}")
    for name, (prediction, truth) in make_cases().items():
        best = dict.fromkeys(contestants, np.inf)
        values = {}
        for _ in range(REPEATS):
            for contestant, compute in contestants.items():
                start = time.process_time()
                values[contestant] = compute(prediction, truth)
                best[contestant] = min(best[contestant], time.process_time() - start)
        for contestant, (hd95, assd, nsd) in values.items():
            total[contestant] += best[contestant]
            print(f"{name:14} {contestant:10} {best[contestant]:8.4f} {hd95:8.3f} {assd:8.3f} {nsd:7.4f}")
        np.testing.assert_allclose(values["fedvox"], values["monai"], rtol=1e-4)
    print(f"ratio to DeepMind: {total['deepmind'] / total['fedvox']:.2f}")
    print(f"surface_metrics: {total['monai'] / total['fedvox']:.2f}")


if __name__ == "__main__":
    main()
