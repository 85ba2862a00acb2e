"""The model before the first round."""

from __future__ import annotations

import torch

from common.models.unet3d import build_model
from common.plan import Plan
from common.protocol import Vector, WeightLayout


def initial_weights(plan: Plan, seed: int) -> tuple[Vector, WeightLayout]:
    """The weights before the first round: the network's own initialisation, drawn from the federation's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(plan.model)
    layout = WeightLayout.of(model)
    return layout.flatten(model.state_dict()), layout
