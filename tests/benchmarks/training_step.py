"""A training step of ours against the bare forward, backward and optimizer step of the same model.

``python -m tests.benchmarks.training_step [DATASET]``. Both run in turn in one process, on the same batches of two
40x56x40 patches; the trainer's side includes preparing and augmenting patches, clipping and the learning rate. The
last part is an iteration of nnU-Net's own hippocampus plan (batch 8, channels 32-64-128-256, deep supervision), here
with this project's upsampling in the place of transposed convolutions, and GroupNorm in the place of InstanceNorm.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from client.training.trainer import Trainer
from common.config.federation import ModelConfig, TrainingConfig
from common.imaging.cache.case_cache import CachedCase, CaseCache
from common.imaging.datasets.dataset import find_dataset
from common.imaging.patches.sampler import PatchSampler
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.planning.fingerprint import fingerprint_dataset
from common.planning.planner import make_plan
from common.system.devices import autocast_dtype
from tests.conftest import REPOSITORY

ROUNDS = 8
STEPS = 10
PATCH = (40, 56, 40)
NNUNET_ITERATIONS = 6


def bare_steps(model: nn.Module, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Seconds per step of the shortest training loop, on batches that lie ready in memory."""
    device = torch.device("cpu")
    dtype = autocast_dtype(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()
    started = time.perf_counter()
    for image, label in batches:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = model(image)
        nn.functional.cross_entropy(output.float(), label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (time.perf_counter() - started) / len(batches)


def compare(plan: Plan, cases: Sequence[CachedCase]) -> tuple[float, float]:
    """Ratio of the medians of our step and the bare one, and the share of time that ours waits for data in percent."""
    config = TrainingConfig(local_steps=STEPS, batch_size=2)
    trainer = Trainer(build_model(plan.model), plan, config, STEPS * (ROUNDS + 1), torch.device("cpu"))
    bare_model = build_model(plan.model)
    weights = trainer.layout.flatten(bare_model.state_dict())
    sampler = PatchSampler(cases, plan.patch_size, 2, 0.5, None, (), 0)
    batches = [(batch.image, batch.label.long()) for batch in (sampler.batch(step) for step in range(STEPS))]
    trainer.train(weights, cases, 1, 0)
    bare_steps(bare_model, batches)
    ours, bare, waited = [], [], []
    for number in range(2, ROUNDS + 2):
        training = trainer.train(weights, cases, number, 0)
        seconds = training.seconds_data + training.seconds_compute
        ours.append(seconds / STEPS)
        waited.append(100 * training.seconds_data / seconds)
        bare.append(bare_steps(bare_model, batches))
    for name, values in (("ours", ours), ("bare", bare)):
        print(f"batch 2 of 40x56x40, {name:<5} {statistics.median(values):7.3f} s per step (best {min(values):.3f})")
    print(f"waiting for data          {statistics.median(waited):7.2f} %")
    return statistics.median(ours) / statistics.median(bare), statistics.median(waited)


def nnunet_iteration(plan: Plan, cases: Sequence[CachedCase]) -> float:
    """Median seconds of an iteration with nnU-Net's hippocampus plan."""
    config = TrainingConfig(local_steps=1, batch_size=8, optimizer="sgd", learning_rate=0.01, momentum=0.99)
    trainer = Trainer(build_model(plan.model), plan, config, NNUNET_ITERATIONS + 1, torch.device("cpu"))
    weights = trainer.layout.flatten(build_model(plan.model).state_dict())
    seconds = []
    for number in range(1, NNUNET_ITERATIONS + 2):
        training = trainer.train(weights, cases, number, 0)
        seconds.append(training.seconds_compute + training.seconds_data)
    median = statistics.median(seconds[1:])
    print(
        f"nnU-Net's plan, batch 8   {median:7.3f} s per iteration (best {min(seconds[1:]):.3f}), {weights.size} weights"
    )
    return median


def main(arguments: Sequence[str]) -> None:
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    dataset = find_dataset(Path(arguments[0]) if arguments else data / "Task04_Hippocampus")
    cases = dataset.cases[:40]
    with tempfile.TemporaryDirectory() as folder:
        fingerprint = fingerprint_dataset(cases, dataset.labels)
        plan = make_plan(fingerprint, dataset.channels, dataset.labels, network=ModelConfig(patch_size=PATCH))
        cached = CaseCache(Path(folder), plan.preprocessing, plan.labels).prepare(cases)
        ratio, waited = compare(plan, cached)
        large = make_plan(
            fingerprint,
            dataset.channels,
            dataset.labels,
            network=ModelConfig(channels=(32, 64, 128, 256), patch_size=PATCH, deep_supervision=True),
        )
        seconds = nnunet_iteration(large, cached)
    print(f"training_step: {ratio:.2f} {waited:.2f} {seconds:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
