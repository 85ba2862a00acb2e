"""Fingerprint and preprocessing of the real hippocampus cases, the first and the second time, and batch preparation.

``python -m tests.benchmarks.preprocessing [DATASET]``; the dataset is Task04_Hippocampus in the folder of test data
unless one is given. Files are in the operating system's cache, as they are after a copy to local disk.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from common.imaging.cache.case_cache import CachedCase, CaseCache
from common.imaging.datasets.dataset import Dataset, find_dataset
from common.imaging.patches.sampler import PatchSampler
from common.plan.augmentation import AugmentationPlan
from common.plan.plan import Plan
from common.planning.fingerprint import fingerprint_dataset
from common.planning.planner import make_plan
from tests.conftest import REPOSITORY

BATCHES = 200


def prepare(dataset: Dataset, folder: Path) -> tuple[Plan, list[CachedCase], list[tuple[str, float]]]:
    """Everything from files to cached cases, with the seconds of each part."""
    workers = len(os.sched_getaffinity(0))
    start = time.perf_counter()
    fingerprint = fingerprint_dataset(dataset.cases, dataset.labels, workers, folder=folder)
    plan = make_plan(fingerprint, dataset.channels, dataset.labels)
    middle = time.perf_counter()
    cases = CaseCache(folder, plan.preprocessing, plan.labels).prepare(dataset.cases, workers)
    return plan, cases, [("fingerprint", middle - start), ("preprocessing", time.perf_counter() - middle)]


def milliseconds_per_batch(batch: Callable[[int], object]) -> float:
    """Mean time that one core works on a batch, in milliseconds; torch must be set to one thread."""
    batch(0)
    start = time.thread_time()
    for step in range(BATCHES):
        batch(step)
    return (time.thread_time() - start) / BATCHES * 1000


def main(arguments: Sequence[str]) -> None:
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    dataset = find_dataset(Path(arguments[0]) if arguments else data / "Task04_Hippocampus")
    for path in (path for case in dataset.cases for path in (*case.images, case.label) if path):
        path.read_bytes()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for time_name in ("first", "second"):
            plan, cases, parts = prepare(dataset, Path(folder) / "cache")
            seconds.append(sum(part for _, part in parts))
            for name, part in parts:
                print(f"{len(dataset.cases)} cases, {time_name} time, {name:<14} {part:8.3f} s")
        torch.set_num_threads(1)
        size = "x".join(map(str, plan.patch_size))
        for name, augmentation in (("plain", None), ("augmented", AugmentationPlan())):
            sampler = PatchSampler(cases, plan.patch_size, 2, 0.5, augmentation, (0,), seed=0)
            print(f"batch of 2 patches of {size}, {name:<10} {milliseconds_per_batch(sampler.batch):8.3f} ms")
    print(f"preprocessing: {seconds[0]:.2f} {seconds[1]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
