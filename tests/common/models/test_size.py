"""The number of weights from the plan is the network's own."""

from __future__ import annotations

import pytest
import torch

from common.models.size import weight_count
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan
from tests.common.models.test_unet3d import PLANS


@pytest.mark.parametrize("plan", [*PLANS, ModelPlan()])
def test_weights_are_counted_as_the_network_has_them(plan: ModelPlan) -> None:
    with torch.device("meta"):
        network = build_model(plan)
    assert weight_count(plan) == sum(tensor.numel() for tensor in network.state_dict().values())
