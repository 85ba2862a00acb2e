"""A site's runner that neither trains nor scores: what is left of a round is overhead.

Everything else is the real thing: shared folder, journal, consent, audit log, protocol, update on disk. Takes the
options of ``client.runner``.
"""

from __future__ import annotations

import sys

from client.runner.isolation import isolate

# Before anything starts a thread, as the real program does it.
ISOLATION = isolate() if __name__ == "__main__" else None

# ruff: noqa: E402
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Context

from client.runner import main as runner
from client.runner.client_app import Site
from client.runner.local_site import SiteData
from client.training.trainer import StepCallback, Trainer, Training, Validation
from common.config.federation import FederationConfig
from common.imaging.cache.case_cache import CachedCase
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.protocol.codec import Vector


class IdleTrainer(Trainer):
    """Gives nearly the same small update whatever it gets; the server refuses one that was sent before."""

    def __init__(self, config: FederationConfig, plan: Plan, name: str) -> None:
        super().__init__(build_model(plan.model), plan, config.training, 1, torch.device("cpu"))
        random = np.random.default_rng(list(name.encode()))
        self._update = 1e-3 * random.standard_normal(self.layout.size, np.float32)

    def train(
        self,
        weights: Vector,
        cases: Sequence[CachedCase],
        round_number: int,
        seed: int,
        on_step: StepCallback | None = None,
        correction: Vector | None = None,
    ) -> Training:
        """Nearly the same update again."""
        return Training(self._update * np.float32(1 + 0.01 * round_number), 1, 0.5, 0.0, 0.0)

    def validate(
        self, weights: Vector, cases: Sequence[CachedCase], round_number: int = 0, seed: int = 0
    ) -> Validation:
        """The same scores again."""
        return Validation(dict.fromkeys(self.plan.labels, 0.5), 0.5, 0.0)


class IdleSite:
    """Stands where ``client.runner.local_site.LocalSite`` does."""

    def __init__(self, config: FederationConfig, plan: Plan, data: SiteData, *_: object) -> None:
        patients: Any = [None] * 10
        self._site = Site(data.name, patients, patients, 0, config.digest(), IdleTrainer(config, plan, data.name))

    def __call__(self, context: Context) -> Site:
        """The site."""
        return self._site

    def open(self) -> Site:
        """The site."""
        return self._site


if ISOLATION is not None:
    runner.LocalSite = IdleSite  # type: ignore[assignment,attr-defined]
    sys.exit(runner.main(ISOLATION))
