"""A differentially private training step against the ordinary one of the same trainer, and against Opacus'.

``python -m tests.benchmarks.private_step``. A batch is 8 patients of 40x56x40, in expectation where patients are drawn
by Poisson sampling. Our side is all of ``Trainer.train``: drawing, cutting and augmenting patches, clipping, noise,
optimizer. Times of private steps are per 8 patients that were really drawn. The two trainers take turns in one process
for the time, in the precision that the processor computes fastest, and have one each for the peak memory (all of the
process). Opacus' side is bare forward, backward and step in float32 on patches that lie ready, with a plain
cross-entropy, once with its default hooks and once with its ghost clipping; ours is then float32 too.

The last line has the ratios of time and memory of the private to the ordinary step.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from client.training.dp_sampling import draw_patients, repeatable_key
from client.training.dp_trainer import make_trainer
from client.training.trainer import Trainer
from common.config.federation import FederationConfig
from common.imaging.cache.case_cache import CachedCase
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan, Plan, PreprocessingPlan
from common.planning.resolve import with_privacy
from common.system.devices import keep_freed_memory
from tests.conftest import REPOSITORY

PATCH = (40, 56, 40)
BATCH = 8
PATIENTS = 40
STEPS = 2
TURNS = 5
PLAN = Plan(
    channels=("t1",),
    labels={1: "a", 2: "b"},
    preprocessing=PreprocessingPlan(),
    model=ModelPlan(classes=3),
    patch_size=PATCH,
)


class SampleCrossEntropy(nn.CrossEntropyLoss):
    """Means over voxels first: ghost clipping wants one loss per sample where nothing is reduced."""

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(logits, label, reduction="none").flatten(1).mean(1)
        return loss if self.reduction == "none" else loss.mean()


def patients() -> list[CachedCase]:
    """Noise with two boxes of foreground: what is in an image changes no times."""
    cases = []
    for number in range(PATIENTS):
        image = np.random.default_rng(number).normal(size=(1, 48, 64, 48)).astype(np.float32)
        label = np.zeros(image.shape[1:], np.uint8)
        label[16:24, 20:40, 16:32] = 1
        label[24:32, 20:40, 16:32] = 2
        foreground = {value: np.argwhere(label == value).astype(np.int32) for value in (1, 2)}
        cases.append(CachedCase(f"case-{number}", image, label, (1.0, 1.0, 1.0), foreground))
    return cases


def trainer_of(private: bool, precision: str) -> Trainer:
    training = {"local_steps": STEPS, "precision": precision, "batch_size": BATCH}
    values: dict[str, object] = {"name": "bench", "rounds": TURNS + 1, "training": training}
    if private:
        values["privacy"] = {"epsilon": 8, "sample_rate": BATCH / PATIENTS}
    config = FederationConfig.model_validate(values)
    return make_trainer(config, with_privacy(PLAN, config), torch.device("cpu"), repeatable=True)


def seconds_per_batch(trainer: Trainer, cases: Sequence[CachedCase], number: int) -> float:
    """Seconds that a round takes per 8 patients."""
    weights = trainer.layout.flatten(build_model(PLAN.model).state_dict())
    training = trainer.train(weights, cases, number, 0)
    batches = float(STEPS)
    if trainer.privacy is not None:
        key, names = repeatable_key(0, number, "training"), [case.name for case in cases]
        steps = range((number - 1) * STEPS, number * STEPS)
        batches = sum(len(draw_patients(key, names, BATCH / PATIENTS, step)) for step in steps) / BATCH
    return (training.seconds_compute + training.seconds_data) / batches


def take_turns(cases: Sequence[CachedCase]) -> dict[str, float]:
    trainers = {"ordinary": trainer_of(False, "auto"), "private": trainer_of(True, "auto")}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(1, TURNS + 2):
        for name, trainer in trainers.items():
            times[name].append(seconds_per_batch(trainer, cases, number))
    print(f"both in {trainers['private'].precision}", file=sys.stderr)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def opacus_seconds(ghost: bool) -> float:
    """Median seconds per step of Opacus' engine, on one batch again and again."""
    from opacus import PrivacyEngine

    keep_freed_memory()
    images, labels = torch.randn(BATCH, 1, *PATCH), torch.randint(0, 3, (BATCH, *PATCH))
    data = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    model = build_model(PLAN.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = SampleCrossEntropy()
    settings: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "poisson_sampling": False}
    if ghost:
        settings |= {"grad_sample_mode": "ghost", "criterion": criterion}
    made = PrivacyEngine().make_private(module=model, optimizer=optimizer, data_loader=loader, **settings)
    network, stepper = made[0], made[1]
    loss_of = made[2] if ghost else criterion
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        stepper.zero_grad()
        loss_of(network(images), labels).backward()
        stepper.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure(candidate: str) -> dict[str, float]:
    """Runs in a process of its own."""
    if candidate == "turns":
        return take_turns(patients())
    if candidate.startswith("opacus"):
        seconds = opacus_seconds(ghost=candidate.endswith("ghost"))
    else:
        trainer, cases = trainer_of(candidate.startswith("private"), candidate.partition(" ")[2]), patients()
        rounds = range(1, 4)
        seconds = statistics.median([seconds_per_batch(trainer, cases, number) for number in rounds][1:])
    return {"seconds": seconds, "peak": peak_bytes()}


def in_own_process(candidate: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.private_step", candidate]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if "peak" in found:
        print(f"{candidate:<20} {found['seconds']:7.3f} s  {found['peak'] / 2**20:6.0f} MiB", flush=True)
    return found


def main(arguments: Sequence[str]) -> None:
    if arguments:
        print(json.dumps(measure(arguments[0])))
        return
    turns = in_own_process("turns")
    print("in turns:            " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in turns.items()), flush=True)
    names = ("ordinary auto", "private auto", "ordinary float32", "private float32", "opacus hooks", "opacus ghost")
    found = {name: in_own_process(name) for name in names}
    ours = found["private float32"]
    for name in ("opacus hooks", "opacus ghost"):
        faster, smaller = found[name]["seconds"] / ours["seconds"], ours["peak"] / found[name]["peak"]
        print(f"against {name}: {faster:.2f} times as fast, {smaller:.2f} of its memory")
    memory = found["private auto"]["peak"] / found["ordinary auto"]["peak"]
    print(f"private_step: {turns['private'] / turns['ordinary']:.2f} {memory:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
