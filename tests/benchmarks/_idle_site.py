"""A site's runner that neither trains nor scores: what is left of a round is overhead.

Everything else is the real thing: task source, consent, audit log, protocol, update on the wire. Takes the options of
``client.site_runner``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Context

import client.site_runner
from client.app import Site
from client.trainer import StepCallback, Trainer, Training, Validation
from common.config import FederationConfig
from common.imaging.cache import CachedCase
from common.models.unet3d import build_model
from common.plan import Plan
from common.protocol import Vector


class IdleTrainer(Trainer):
    """Gives the same small update whatever it gets."""

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
    ) -> Training:
        """The same update again."""
        return Training(self._update, 1, 0.5, 0.0, 0.0)

    def validate(
        self, weights: Vector, cases: Sequence[CachedCase], round_number: int = 0, seed: int = 0
    ) -> Validation:
        """The same scores again."""
        return Validation(dict.fromkeys(self.plan.labels, 0.5), 0.5, 0.0)


class IdleSite:
    """Stands where ``client.site_data.LocalSite`` does."""

    def __init__(self, config: FederationConfig, plan: Plan, name: str, *_: object) -> None:
        patients: Any = [None] * 10
        self._site = Site(name, patients, patients, 0, config.digest(), IdleTrainer(config, plan, name))

    def __call__(self, context: Context) -> Site:
        """The site."""
        return self._site

    def open(self) -> Site:
        """The site."""
        return self._site


if __name__ == "__main__":
    client.site_runner.LocalSite = IdleSite  # type: ignore[assignment,misc]
    client.site_runner.main()
