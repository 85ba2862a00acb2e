"""The estimate of a training step's memory against what PyTorch keeps for the backward pass."""

from __future__ import annotations

import contextlib

import pytest
import torch

from common.models.memory import training_bytes
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan

PLANS = (
    ModelPlan(channels=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2, blocks=(1, 1), groups=4),
    ModelPlan(
        channels=(8, 16, 16),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 1)),
        kernels=((3, 3, 3),) * 3,
        blocks=(2, 2, 3),
        groups=4,
        deep_supervision=True,
    ),
)


def kept_bytes(plan: ModelPlan, batch: int, autocast: bool) -> int:
    """Bytes of all different tensors that a forward pass keeps, without the parameters."""
    model = build_model(plan)
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), half:
        output = model(torch.zeros(batch, plan.in_channels, 16, 16, 16))
    del output
    return sum(kept.values())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("autocast", "value_bytes"), [(False, 4), (True, 2)])
def test_the_estimate_is_a_lower_bound_and_not_far_below(plan: ModelPlan, autocast: bool, value_bytes: int) -> None:
    estimated = training_bytes(plan, (16, 16, 16), 2, value_bytes)
    assert 0.3 * kept_bytes(plan, 2, autocast) < estimated <= kept_bytes(plan, 2, autocast)
