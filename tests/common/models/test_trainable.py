"""Which parameters each choice trains, by name, on networks of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.models.trainable import Trainable, train_only, trainable_names
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan

PLAIN = ModelPlan(
    channels=(4, 8),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3),) * 2,
    blocks=(1, 1),
    decoder_blocks=1,
    groups=2,
)
EVERY_PARAMETER = {
    "encoder.0.0.conv.weight",
    "encoder.0.0.norm.weight",
    "encoder.0.0.norm.bias",
    "encoder.1.0.conv.weight",
    "encoder.1.0.norm.weight",
    "encoder.1.0.norm.bias",
    "up.0.project.weight",
    "up.0.project.bias",
    "decoder.0.0.conv.weight",
    "decoder.0.0.norm.weight",
    "decoder.0.0.norm.bias",
    "heads.0.weight",
    "heads.0.bias",
}
HEAD = {"heads.0.weight", "heads.0.bias"}
NORMS = {name for name in EVERY_PARAMETER if ".norm." in name}
DECODER = {name for name in EVERY_PARAMETER if name.startswith(("up", "decoder", "heads"))}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("all", EVERY_PARAMETER),
        ("head", HEAD),
        ("norms", NORMS),
        ("head_and_norms", HEAD | NORMS),
        ("decoder", DECODER),
    ],
)
def test_exactly_these_parameters(choice: Trainable, expected: set[str]) -> None:
    assert trainable_names(build_model(PLAIN), choice) == expected


def test_a_shortcut_has_a_norm_too() -> None:
    model = build_model(PLAIN.model_copy(update={"residual": True}))
    assert {"encoder.1.0.shortcut.1.weight", "encoder.1.0.shortcut.1.bias"} <= trainable_names(model, "norms")
    assert "encoder.1.0.shortcut.0.weight" not in trainable_names(model, "norms")


def test_deep_supervision_trains_a_head_of_each_decoder_stage() -> None:
    stages = {
        "channels": (4, 8, 16),
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        "kernels": ((3, 3, 3),) * 3,
        "blocks": (1, 1, 1),
    }
    shallow = trainable_names(build_model(PLAIN.model_copy(update=stages)), "head")
    deep = trainable_names(build_model(PLAIN.model_copy(update=stages | {"deep_supervision": True})), "head")
    assert shallow == {"heads.1.weight", "heads.1.bias"}
    assert deep == shallow | {"heads.0.weight", "heads.0.bias"}


@pytest.mark.parametrize("choice", ["all", "head", "norms", "head_and_norms", "decoder"])
def test_a_step_moves_the_chosen_parameters_and_no_other(choice: Trainable) -> None:
    torch.manual_seed(0)
    model = build_model(PLAIN)
    trained = train_only(model, choice)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    output = model(torch.randn(1, 1, 8, 8, 8))
    nn.functional.cross_entropy(output, torch.randint(0, 2, (1, 8, 8, 8))).backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable_names(model, choice)
    assert trained == sum(before[name].numel() for name in moved)


def test_choosing_again_forgets_the_first_choice() -> None:
    model = build_model(PLAIN)
    train_only(model, "head")
    assert train_only(model, "all") == sum(parameter.numel() for parameter in model.parameters())
