"""Weight gradients in channels-last order against Torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from client.training.onednn_conv import is_available
from client.training.weight_gradients import ChannelsLastWeightGradients, is_faster
from common.losses import build_loss
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan
from tests.client.training.convolutions import outcome

pytestmark = pytest.mark.skipif(not is_available(), reason="this Torch was built without oneDNN")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "stride": (1, 2, 2)},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_torchs_own(batch: int, channels: int, settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer, image = nn.Conv3d(channels, 8, **settings), torch.randn(batch, channels, 10, 12, 8)  # type: ignore[arg-type]
    expected = outcome(layer, image)
    with ChannelsLastWeightGradients():
        found = outcome(layer, image)
    assert len(found) == 3 + (layer.bias is not None)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
        assert one.stride() == other.stride(), "the optimizer and GroupNorm want the usual order"


def test_what_needs_no_gradient_gets_none() -> None:
    layer, image = nn.Conv3d(8, 4, 3, padding=1), torch.randn(2, 8, 6, 8, 6)
    layer.weight.requires_grad_(False)
    with ChannelsLastWeightGradients():
        layer(image).sum().backward()
    assert (image.grad, layer.weight.grad) == (None, None)
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 2.0 * 6 * 8 * 6))


def test_a_network_learns_the_same() -> None:
    torch.manual_seed(0)
    model, loss = build_model(ModelPlan(classes=2)), build_loss("dice_ce", None, False)
    image, label = torch.randn(2, 1, 16, 16, 16), torch.randint(0, 2, (2, 16, 16, 16))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        loss(model(image), label).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    expected = gradients()
    with ChannelsLastWeightGradients():
        found = gradients()
    assert len(found) == len(list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "autocast", "capability", "expected"),
    [
        (CPU, None, "AVX2", True),
        (CPU, None, "AVX512", False),
        (CPU, None, "DEFAULT", False),
        (CPU, torch.bfloat16, "AVX2", False),
        (GPU, None, "AVX2", False),
    ],
)
def test_it_is_used_where_it_was_measured(
    device: torch.device, autocast: torch.dtype | None, capability: str, expected: bool
) -> None:
    assert is_faster(device, autocast, capability) is expected
