"""A runner whose training is a stand-in: it waits, and its update is new random numbers every time.

All else is real: task loop, journal, ClientApp, policy, audit log, ledger. Every training adds a line to the file
``trained`` in the site's folder. Processes are forked from one that has loaded everything once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from client.consent.guard import open_guard
from client.consent.site_config import SITE_FILE
from client.ledger.budget import LedgerBudget
from client.ledger.ledger import Ledger, Witness
from client.ledger.patient_identity import Patient
from client.runner.app_call import ReceivedWeights
from client.runner.client_app import Site, SiteWeights, make_client_app
from client.runner.progress import RunnerStatus, TaskProgress
from client.runner.task_journal import TaskJournal
from client.runner.task_loop import TaskLoop
from client.training.trainer import Trainer, Training, Validation
from common.config.federation import FederationConfig, TrainingConfig
from common.imaging.cache.case_cache import CachedCase
from common.plan.privacy import PrivacyPlan, Spend
from common.protocol.messages import Task
from common.weights.encoding import Vector
from common.weights.store import FileStore
from tests import tiny
from tests.client.runner.process import RunnerProcess, fork
from tests.kits import approve, write_kit

SIZE = 1000
STEP_SECONDS = 0.02
CONFIG = tiny.federation(rounds=9, labels={1: "ball"}, channels=("t1",), privacy={"epsilon": 20})
TRAINING, VALIDATION = Spend("training", 4.0, 1.0, 2), Spend("validation", 8.0, 1.0, 1)
"""Without a random sample, which makes the accountant fast."""
PATIENTS: dict[str, Patient] = {name: (f"{number:064x}",) for number, name in enumerate("abcd", 1)}


class StandInTrainer:
    """Has what the app asks of a trainer."""

    def __init__(
        self, steps: int, step_seconds: float, on_training: Callable[[int], None], privacy: PrivacyPlan
    ) -> None:
        self.config = TrainingConfig(local_steps=steps)
        self.layout = SimpleNamespace(size=SIZE)
        self.device = torch.device("cpu")
        self.precision = "float32"
        self.privacy = privacy
        self._steps, self._step_seconds = steps, step_seconds
        self._on_training = on_training

    def validate(self, weights: Vector, cases: Sequence[CachedCase], round: int, seed: int) -> Validation:
        assert weights.size == SIZE
        return Validation({1: 0.5}, 1.0, 0.0)

    def train(
        self,
        weights: Vector,
        cases: Sequence[CachedCase],
        round: int,
        seed: int,
        on_step: Callable[..., None],
        correction: Vector | None,
    ) -> Training:
        assert correction is None
        self._on_training(round)
        for step in range(1, self._steps + 1):
            time.sleep(self._step_seconds)
            on_step(step, None)
        return Training(np.random.default_rng().normal(size=SIZE).astype(np.float32), self._steps, 0.5, 0.0, 0.0)


class StandIn(RunnerProcess):
    """Folders and process of a site with a stand-in; the test is the courier.

    Args:
        folder: for everything.
        config: of the federation.
    """

    def __init__(self, folder: Path, config: FederationConfig = CONFIG) -> None:
        super().__init__(folder)
        self.config = config

    def make(self) -> None:
        """Makes the folders and agrees to the federation."""
        self.state.make()
        self.shared.make()
        write_kit(self.kit, self.config, tiny.plan())
        self.approve()

    def approve(self) -> None:
        """Agrees to the federation."""
        approve(self.kit, self.state.path, self.consent)

    def task(self, round_number: int = 1, run: str = "a-run", train: bool = True) -> Task:
        """A task whose weights are in the inbox; not yet given to the runner."""
        weights = np.full(SIZE, round_number, "<f4")
        model = FileStore(self.shared.inbox).put([weights])
        return Task(run, self.config.digest(), round_number, self.config.rounds, train, model)

    def start(self, steps: int = 2) -> None:
        """Starts a process that serves the shared folder."""
        self.process = fork(_serve, self.log, self.folder, steps)

    def trained(self) -> list[int]:
        """Rounds that were trained, in order."""
        file = self.folder / "trained"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def serve(self, steps: int = 2, step_seconds: float = STEP_SECONDS) -> None:
        """Runs until SIGTERM, in this process."""
        status = RunnerStatus(self.state.runner)
        progress = TaskProgress(self.shared, status)
        journal = TaskJournal(self.state.journal)
        guard = open_guard(self.kit, self.state.path, self.consent, journal.attempt)
        plan = PrivacyPlan(training=TRAINING, validation=VALIDATION)

        def note(round_number: int) -> None:
            descriptor = os.open(self.folder / "trained", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{round_number}\n".encode())
            os.close(descriptor)

        case = cast(Any, SimpleNamespace(owner="a"))
        people = {"training": [PATIENTS["a"]], "validation": [PATIENTS["b"]]}
        budget = LedgerBudget(
            Ledger(self.ledger, Witness(self.state.path)),
            self.config,
            cast(Any, people),
            self.state.path / SITE_FILE,
            journal.attempt,
        )
        site = Site(
            name="north",
            train_cases=[case],
            validation_cases=[case],
            seed=1,
            digest=self.config.digest(),
            trainer=cast(Trainer, StandInTrainer(steps, step_seconds, note, plan)),
            observer=progress,
            privacy=plan,
            budget=budget,
        )
        weights = SiteWeights(ReceivedWeights(self.shared.inbox), FileStore(self.shared.outbox))
        app = make_client_app(lambda context: site, weights, guard)
        with self.shared.held_by("runner"):
            TaskLoop(self.shared, journal, app, guard, progress, status).serve(lambda: None)


def _serve(folder: Path, steps: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    StandIn(folder).serve(steps)
    os._exit(0)
