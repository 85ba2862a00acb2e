"""The smallest federation that is still a real one: two sites, eight phantoms, a small network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from client.runner.client_app import Site
from client.training.trainer import Trainer
from common.config.federation import FederationConfig, TrainingConfig
from common.imaging.cache.case_cache import CachedCase
from common.models.bundle_file import write_bundle
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan, Plan, PreprocessingPlan
from common.planning.resolve import with_privacy

FEDERATION = """
name: tiny
rounds: 3
seed: 1
model: {channels: [8, 16], groups: 4}
training: {local_steps: 3, precision: float32}
simulation:
  phantom: {cases_per_site: [4, 4], shape: [32, 32, 32]}
  partition: {method: column, file: sites.csv, column: site, validation_fraction: 0.25}
"""


def write_federation(folder: Path) -> Path:
    path = folder / "federation.yaml"
    path.write_text(FEDERATION, encoding="utf-8")
    return path


def plan() -> Plan:
    return Plan(
        channels=("t1",),
        labels={1: "ball"},
        preprocessing=PreprocessingPlan(),
        model=ModelPlan(
            channels=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2, blocks=(1, 1), groups=4
        ),
        patch_size=(16, 16, 16),
    )


def plan_for(config: FederationConfig) -> Plan:
    """With the noise that the federation asks for."""
    return with_privacy(plan(), config)


def ball(name: str, seed: int) -> CachedCase:
    """A bright noisy ball at a random place in a cube of 20 voxels."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(7, 13, size=3)
    distance = np.linalg.norm(np.indices((20, 20, 20)).T - centre, axis=-1).T
    label = (distance < 5).astype(np.uint8)
    image = (2 * label + rng.normal(0, 0.5, label.shape)).astype(np.float32)[None]
    return CachedCase(name, image, label, (1.0, 1.0, 1.0), {1: np.argwhere(label).astype(np.int32)})


def trainer(rounds: int = 3, **training: object) -> Trainer:
    config = TrainingConfig.model_validate({"local_steps": 4, "precision": "float32", "augmentation": None} | training)
    torch.manual_seed(0)
    return Trainer(build_model(plan().model), plan(), config, rounds * config.local_steps, torch.device("cpu"))


def site(name: str, seed: int, digest: str, patients: int = 3, **training: Any) -> Site:
    cases = [ball(f"{name}-{index}", 100 * seed + index) for index in range(patients + 1)]
    return Site(name, cases[:-1], cases[-1:], seed, digest, trainer(**training))


def federation(rounds: int = 3, **values: object) -> FederationConfig:
    return FederationConfig.model_validate({"name": "tiny", "rounds": rounds} | values)


def save_bundle(folder: Path, model: nn.Module, plan: Plan, provenance: Mapping[str, Any]) -> None:
    """A network as a bundle, replacing an existing one."""
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    write_bundle(folder, weights, plan, provenance)
