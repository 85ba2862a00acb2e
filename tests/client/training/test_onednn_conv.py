"""Convolutions of one sample by oneDNN against Torch's own kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from client.training.onednn_conv import LARGEST_FOR_TORCH, OneDnnConvolutions, is_available
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan
from tests.client.training.convolutions import outcome

pytestmark = pytest.mark.skipif(not is_available(), reason="this Torch was built without oneDNN")

SMALL, LARGE = (6, 8, 6), (24, 32, 24)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "stride": (1, 2, 2)},
        {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_outputs_and_gradients_are_torchs_own(shape: tuple[int, int, int], settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer, image = nn.Conv3d(32, 16, **settings), torch.randn(1, 32, *shape)  # type: ignore[arg-type]
    assert (image.numel() // shape[-1] <= LARGEST_FOR_TORCH) == (shape == SMALL)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = outcome(layer, image)
    with OneDnnConvolutions():
        found = outcome(layer, image)
    assert len(found) == 3 + (layer.bias is not None)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_what_needs_no_gradient_gets_none() -> None:
    layer, image = nn.Conv3d(4, 4, 3, padding=1), torch.randn(1, 4, *SMALL)
    layer.weight.requires_grad_(False)
    with OneDnnConvolutions():
        layer(image).sum().backward()
    assert image.grad is None
    assert layer.weight.grad is None
    assert layer.bias is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), float(torch.tensor(SMALL).prod())))


def test_the_backward_pass_takes_no_slow_kernel() -> None:
    model, image = build_model(ModelPlan(classes=2)), torch.randn(1, 1, 16, 16, 16)

    def kernels() -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            model(image).sum().backward()
        return {event.key for event in found.key_averages() if "slow_conv" in event.key}

    assert kernels()
    with OneDnnConvolutions():
        assert not kernels()
