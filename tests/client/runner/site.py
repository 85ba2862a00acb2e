"""A site's real runner, with phantoms for scans."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from client.runner.__main__ import run
from common.config.federation import FederationConfig, load_federation
from common.imaging.phantoms.dataset import PHANTOM_LABELS, write_phantom_dataset
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.planning.resolve import plan_from_config
from common.protocol.messages import Hello, Task
from common.weights.store import FileStore
from tests.client.runner.process import ForkedProcess, RunnerProcess, fork
from tests.kits import approve, write_kit

RUN = "a-run"
PRIVACY = "privacy: {epsilon: 20, sample_rate: 0.5}\n"
FEDERATION = f"""
name: tiny-network
rounds: 9
seed: 1
channels: [synthetic]
labels: {PHANTOM_LABELS}
preprocessing: {{spacing: keep}}
model: {{channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}}
training: {{local_steps: STEPS, precision: float32, augmentation: null}}
strategy: {{min_sites: 1}}
network: {{address: 127.0.0.1, port: 9443, sites: [north]}}
"""


class RunnerSite(RunnerProcess):
    """Kit, scans, folders and process of one site that has agreed to its federation.

    Args:
        folder: for everything.
        steps: of training, in each round.
        more: lines of the federation file.
    """

    def __init__(self, folder: Path, steps: int = 2, more: str = "") -> None:
        super().__init__(folder)
        self.data = folder / "data"
        self.kit.mkdir(parents=True)
        file = self.kit / "federation.yaml"
        file.write_text(FEDERATION.replace("STEPS", str(steps)) + more, encoding="utf-8")
        self.config: FederationConfig = load_federation(file)
        self.plan: Plan = plan_from_config(self.config)
        write_kit(self.kit, self.config, self.plan)
        write_phantom_dataset(self.data, [3], seed=7, shape=(32, 32, 32))
        self.state.make()
        self.shared.make()
        approve(self.kit, self.state.path, self.consent)

    @cached_property
    def parameters(self) -> int:
        """Of the federation's network."""
        with torch.device("meta"):
            return sum(tensor.numel() for tensor in build_model(self.plan.model).state_dict().values())

    def command(self, shared: Path | None = None) -> list[str]:
        """What runs the runner."""
        command = [sys.executable, "-m", "client.runner", "--kit", str(self.kit), "--data", str(self.data)]
        command += ["--state", str(self.state.path), "--shared", str(shared or self.shared.path)]
        return [*command, "--ledger", str(self.ledger), "--device", "cpu"]

    def start(self) -> None:
        """Starts the runner, in a process that has loaded everything already."""
        self.process = self._fork(self.log)

    def start_program(self) -> None:
        """Starts the runner as a program; it takes a while until it waits for tasks."""
        self.run(self.command())

    def end(self, shared: Path | None = None) -> tuple[int | None, str]:
        """Exit status and output of a runner that is to end by itself."""
        log = self.folder / "ended.log"
        process = self._fork(log, shared)
        process.wait(60)
        return process.poll(), log.read_text(encoding="utf-8")

    def _fork(self, log: Path, shared: Path | None = None) -> ForkedProcess:
        return fork(_run, log, self.command(shared)[2:], self.environment)

    def model(self, seed: int = 0) -> str:
        """Puts weights into the inbox; their digest."""
        values = np.random.default_rng(seed).normal(0, 0.05, self.parameters).astype("<f4")
        return FileStore(self.shared.inbox).put([values])

    def task(self, round_number: int = 1, seed: int = 0, train: bool = True, run: str = RUN) -> Task:
        """A task whose weights are in the inbox; not yet given to the runner."""
        digest = self.config.digest()
        return Task(run, digest, round_number, self.config.rounds, train, self.model(seed))

    def hello(self) -> Hello:
        """Asks who the site is."""
        return Hello(RUN, self.config.digest())


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = list(arguments)
    sys.exit(run())
