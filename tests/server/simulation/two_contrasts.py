"""Two real sites in memory whose scans differ by their intensities: bright balls at one, dark ones at the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor, nn

from client.runner.client_app import Site
from client.runner.personal_model import open_personal_model
from client.training.dp_trainer import make_trainer
from client.training.trainer import Trainer
from common.config.federation import FederationConfig
from common.imaging.cache.case_cache import CachedCase
from common.plan.plan import Plan
from server.progress.events import Event
from server.rounds.round_loop import RoundLoop, make_server_app
from server.rounds.terms import Terms
from server.run_store.folder import FEDERATION_FILE, RunFolder
from server.simulation.engines import run_inline
from tests import tiny

SITES = {"bright": 1.0, "dark": -1.0}


def cases(name: str, contrast: float, count: int) -> list[CachedCase]:
    """A site's scans: balls whose intensities are multiplied by ``contrast``."""
    balls = [tiny.ball(f"{name}-{index}", 10 * len(name) + index) for index in range(count)]
    return [replace(case, image=case.image * contrast) for case in balls]


class Contrast(nn.Module):
    """One convolution, one norm layer: only the signs of its scales tell bright from dark."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1, bias=False)
        self.norm = nn.GroupNorm(1, 2)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.norm(self.conv(image))
        return scores


def contrast_trainer(config: FederationConfig, plan: Plan) -> Trainer:
    torch.manual_seed(0)
    steps = config.rounds * config.training.local_steps
    return Trainer(Contrast(), plan, config.training, steps, torch.device("cpu"))


def unet_trainer(config: FederationConfig, plan: Plan) -> Trainer:
    torch.manual_seed(0)
    return make_trainer(config, plan, torch.device("cpu"), repeatable=True)


def federation(rounds: int = 2, steps: int = 2, rate: float = 2e-3, **values: Any) -> FederationConfig:
    training = {"local_steps": steps, "learning_rate": rate, "precision": "float32", "augmentation": None}
    return tiny.federation(rounds, **{"seed": 1, "training": training} | values)


@dataclass
class TwoSites:
    """What ``run_inline`` needs of simulated sites."""

    config: FederationConfig
    trainer: Trainer
    path: Path
    names: list[str] = field(default_factory=lambda: sorted(SITES))

    def __post_init__(self) -> None:
        self.sites = {}
        for name, contrast in SITES.items():
            *train, validation = cases(name, contrast, 4)
            own = open_personal_model(
                self.config, self.trainer, name, self.path / "kept" / name, self.path / "personal-models" / name
            )
            about = (len(name), self.config.digest(), self.trainer)
            self.sites[name] = Site(name, train, [validation], *about, personal=own)

    def __call__(self, context: Context) -> Site:
        return self.sites[self.names[int(context.node_config["partition-id"])]]


def federate(
    path: Path,
    config: FederationConfig,
    watch: Callable[[Event], None] = lambda event: None,
    make: Callable[[FederationConfig, Plan], Trainer] = unet_trainer,
) -> RunFolder:
    """Run a federation of both sites in a run folder, or go on with it."""
    plan = tiny.plan_for(config)
    trainer = make(config, plan)
    if path.exists():
        folder = RunFolder.open(path)
    else:
        folder = RunFolder.create(path)
        folder.write_text(FEDERATION_FILE, config.resolved())
        folder.save_checkpoint(0, trainer.layout.flatten(trainer.model.state_dict()), trainer.layout)
        folder.begin(config.digest(), "inline", (FEDERATION_FILE,))
    sites = TwoSites(config, trainer, path)
    terms = Terms.of(config, plan, trainer.layout)
    run_inline(lambda link: make_server_app(lambda: RoundLoop(terms, len(SITES), folder, watch, link)), sites)  # type: ignore[arg-type]
    return folder
