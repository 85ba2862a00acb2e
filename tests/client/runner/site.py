"""A site's runner as a process of its own, with phantoms for scans; the test is the courier."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.approvals import AUDIT_FILE, DecisionBook
from client.ledger import Ledger
from client.privacy_account import RoundEntry
from client.shared_folder import SharedFolder
from client.site_state import StateFolder, read_json
from common.audit import Entry, read_entries
from common.config import FederationConfig, as_json, load_federation
from common.messages import Failure, Hello, Task
from common.models.unet3d import build_model
from common.phantom import PHANTOM_LABELS, write_phantom_dataset
from common.plan import Plan
from common.planning import plan_from_config
from common.protocol import Answer, pack, unpack_answer
from common.weights.store import FileStore

RUNNER = (sys.executable, "-m", "client.runner")
RUN = "a-run"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "FLWR_TELEMETRY_ENABLED": "0"}
PRIVACY = "privacy: {epsilon: 20, sample_rate: 0.5}"
FEDERATION = f"""
name: tiny-network
rounds: 9
seed: 1
channels: [synthetic]
labels: {PHANTOM_LABELS}
preprocessing: {{spacing: keep}}
model: {{channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}}
training: {{local_steps: STEPS, precision: float32, augmentation: null}}
network: {{address: 127.0.0.1, port: 9443, sites: [north]}}
"""


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Polls until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.01)


class RunnerSite:
    """Kit, scans, folders and process of one site.

    Args:
        folder: for everything.
        steps: of training, in each round.
        more: lines of the federation file.
    """

    def __init__(self, folder: Path, steps: int = 2, more: str = "") -> None:
        self.folder = folder
        self.kit, self.data = folder / "kit", folder / "data"
        self.state = StateFolder(folder / "state")
        self.shared = SharedFolder(folder / "shared")
        self.ledger = folder / "ledger.jsonl"
        self.log = folder / "runner.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.kit.mkdir(parents=True)
        file = self.kit / "federation.yaml"
        file.write_text(FEDERATION.replace("STEPS", str(steps)) + more, encoding="utf-8")
        self.config: FederationConfig = load_federation(file)
        self.plan: Plan = plan_from_config(self.config)
        (self.kit / "plan.json").write_text(as_json(self.plan), encoding="utf-8")
        kit = {"format": 2, "role": "site", "federation": self.config.name, "digest": self.config.digest()}
        kit |= {"address": "127.0.0.1", "port": 9443, "site": "north"}
        (self.kit / "kit.yaml").write_text(json.dumps(kit), encoding="utf-8")
        write_phantom_dataset(self.data, [3], seed=7, shape=(32, 32, 32))
        self.state.make()
        DecisionBook(self.state.path).approve(self.config.name, self.config.digest(), "Dr. A")

    @cached_property
    def parameters(self) -> int:
        """Of the federation's network."""
        with torch.device("meta"):
            return sum(tensor.numel() for tensor in build_model(self.plan.model).state_dict().values())

    # The process

    def command(self, program: tuple[str, ...] = RUNNER) -> list[str]:
        """What runs the runner."""
        command = [*program, "--kit", str(self.kit), "--data", str(self.data), "--state", str(self.state.path)]
        return [*command, "--shared", str(self.shared.path), "--ledger", str(self.ledger), "--device", "cpu"]

    def start(self, program: tuple[str, ...] = RUNNER, environment: Mapping[str, str] = ENVIRONMENT) -> None:
        """Starts the runner; it may take a while until it waits for tasks."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(program), env=dict(environment), stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def status(self) -> dict[str, Any]:
        """What the runner says of itself; empty while its status is an earlier one's."""
        status = read_json(self.state.runner)
        return status if self.process is not None and status.get("pid") == self.process.pid else {}

    def wait_until(self, state: str) -> None:
        """Until the runner says that it is ``waiting`` or ``working``."""
        wait_for(lambda: self.status.get("state") == state or self.is_over(), state)
        assert self.status.get("state") == state, self.text()

    def wait_for_step(self) -> None:
        """Until training has begun."""
        wait_for(lambda: self.shared.work().step > 0 or self.is_over(), "a step of training")
        assert self.shared.work().step > 0, self.text()

    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """As ``kill -9``."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> float:
        """SIGTERM; how many seconds the end took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - started

    def text(self) -> str:
        """The runner's log."""
        return self.log.read_text(encoding="utf-8")

    # The courier's part

    def model(self, seed: int = 0) -> str:
        """Puts weights into the inbox; their digest."""
        values = np.random.default_rng(seed).normal(0, 0.05, self.parameters).astype("<f4")
        return FileStore(self.shared.inbox).put([values])

    def task(self, round_number: int = 1, seed: int = 0, train: bool = True, run: str = RUN) -> Task:
        """A task whose weights are in the inbox; not yet given to the runner."""
        digest = self.config.digest()
        return Task(run, digest, round_number, self.config.rounds, train, self.model(seed))

    def give(self, task: Task | Hello | str, name: str | None = None) -> str:
        """Puts a message into the inbox; the name of its task."""
        text = task if isinstance(task, str) else pack(task)
        name = name or (task.name if isinstance(task, Task) else os.urandom(16).hex())
        temporary = self.shared.inbox / f".{name}"
        temporary.write_text(text)
        temporary.replace(self.shared.task(name))
        return name

    def hello(self) -> Hello:
        """Asks who the site is."""
        return Hello(RUN, self.config.digest())

    def reply(self, name: str, seconds: float = 60.0) -> bytes:
        """The bytes of an answer, as soon as it is there."""
        file = self.shared.reply(name)
        wait_for(lambda: file.exists() or self.is_over(), f"the answer to {name[:8]}", seconds)
        assert file.exists(), self.text()
        return file.read_bytes()

    def answer(self, name: str, seconds: float = 60.0) -> Answer:
        """An answer, as soon as it is there."""
        return unpack_answer(self.reply(name, seconds))

    def failure(self, name: str) -> tuple[int, str]:
        """Code and reason of an answer that must be a failure."""
        answer = self.answer(name)
        assert isinstance(answer, Failure), answer
        return answer.code, answer.reason

    def take(self, name: str) -> None:
        """Removes a task and its answer, as when the answer was delivered."""
        self.shared.task(name).unlink(missing_ok=True)
        self.shared.reply(name).unlink(missing_ok=True)

    # What was written down

    def entries(self, event: str) -> list[Entry]:
        """Of the audit log."""
        return [entry for entry in read_entries(self.state.path / AUDIT_FILE) if entry.event == event]

    def paid(self) -> list[RoundEntry]:
        """The rounds in the privacy ledger."""
        return [item.entry for item in Ledger(self.ledger).read().rounds]
