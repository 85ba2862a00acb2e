"""Sliding-window prediction of a 192 x 192 x 128 volume against MONAI's ``sliding_window_inference``.

``python -m tests.benchmarks.sliding_window`` runs every candidate in a process of its own (peak memory is that
process's, MONAI imported in all of them), in turns, and takes each one's best time and median peak, which varies by
some ten MB with how the heap falls. Same network with the same weights, same window positions, overlap and Gaussian
weights; the clock runs from image to label map, in a process that has predicted nothing before. MONAI is compared with
at one window a pass, where it is fastest and needs least; the candidates beyond the comparison run once.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SHAPE = (192, 192, 128)
PATCH = (64, 64, 64)
OVERLAP = 0.5
CLASSES = 3
COMPARED = ("monai-1", "ours", "ours-default")
CANDIDATES = {
    "bare": "forward passes alone, float32",
    "monai-1": "MONAI, float32, 1 window a pass",
    "monai-4": "MONAI, float32, 4 windows a pass",
    "ours-logits": "ours, float32, all logits, then labels",
    "ours": "ours, float32, labels",
    "ours-default": "ours, default precision, labels",
}


def _make_image() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Smooth blobs and noise, normalised as a scan would be."""
    generator = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(0, 4 * np.pi, size) for size in SHAPE), indexing="ij", sparse=True)
    image = np.sin(x) * np.cos(y) + np.sin(y + z) + 0.3 * generator.standard_normal(SHAPE)
    return np.asarray((image - image.mean()) / image.std(), dtype=np.float32)[None]


def _measure(name: str, folder: Path) -> dict[str, float]:
    import torch
    from monai.inferers.utils import sliding_window_inference

    from common.imaging.sliding_window import WindowOptions, predict_labels, sliding_window, window_starts
    from common.models.unet3d import build_model
    from common.plan.plan import ModelPlan

    torch.manual_seed(0)
    model = build_model(ModelPlan(classes=CLASSES)).eval()
    image = np.load(folder / "image.npy", allow_pickle=False)
    windows = int(np.prod([len(window_starts(s, p, OVERLAP)) for s, p in zip(SHAPE, PATCH, strict=True)]))

    @torch.inference_mode()
    def bare(array: np.ndarray[Any, Any]) -> torch.Tensor:
        window = torch.from_numpy(array[None, :, : PATCH[0], : PATCH[1], : PATCH[2]]).contiguous()
        for _ in range(windows):
            logits = model(window)
        labels: torch.Tensor = logits.argmax(dim=1)
        return labels

    @torch.inference_mode()
    def monai_labels(array: np.ndarray[Any, Any], batch: int) -> np.ndarray[Any, Any]:
        logits = sliding_window_inference(
            torch.from_numpy(array)[None], PATCH, batch, model, overlap=OVERLAP, mode="gaussian"
        )
        return logits[0].argmax(dim=0).to(torch.uint8).numpy()

    float32 = WindowOptions(OVERLAP, precision="float32")
    candidates: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
        "bare": bare,
        "monai-1": lambda array: monai_labels(array, 1),
        "monai-4": lambda array: monai_labels(array, 4),
        "ours-logits": lambda array: sliding_window(model, array, PATCH, float32).argmax(axis=0),
        "ours": lambda array: predict_labels(model, array, PATCH, float32),
        "ours-default": lambda array: predict_labels(model, array, PATCH, WindowOptions(OVERLAP)),
    }
    candidate = candidates[name]
    started = time.perf_counter()
    labels = candidate(image)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.save(folder / f"{name}.npy", np.asarray(labels, dtype=np.uint8), allow_pickle=False)
    return {"seconds": seconds, "peak": peak}


def _run_apart(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.sliding_window", "--candidate", name, "--folder", str(folder)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--candidate", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.candidate:
        print(json.dumps(_measure(options.candidate, options.folder)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        np.save(folder / "image.npy", _make_image(), allow_pickle=False)
        for repeat in range(options.repeats):
            for name in CANDIDATES if repeat == 0 else COMPARED:
                runs[name].append(_run_apart(name, folder))
        labels = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in CANDIDATES}
    seconds = {name: min(run["seconds"] for run in runs[name]) for name in CANDIDATES}
    peak = {name: statistics.median(run["peak"] for run in runs[name]) for name in CANDIDATES}
    _print_results(seconds, peak, labels)


def _print_results(
    seconds: dict[str, float], peak: dict[str, float], labels: dict[str, np.ndarray[Any, np.dtype[np.uint8]]]
) -> None:
    monai = "monai-1"
    print(f"| {'candidate':40} | seconds | of MONAI's | peak MB | labels equal to MONAI's |")
    print(f"| {'-' * 40} | ------- | ---------- | ------- | ----------------------- |")
    for name, description in CANDIDATES.items():
        equal = "" if name == "bare" else f"{100 * (labels[name] == labels[monai]).mean():.4f} %"
        ratio = seconds[name] / seconds[monai]
        print(f"| {description:40} | {seconds[name]:7.2f} | {ratio:10.3f} | {peak[name] / 1e6:7.0f} | {equal:>23} |")
    same_precision, memory = seconds["ours"] / seconds[monai], peak["ours"] / peak[monai]
    print(f"sliding_window: {same_precision:.3f} {memory:.3f} {seconds[monai] / seconds['ours-default']:.2f}")


if __name__ == "__main__":
    main()
