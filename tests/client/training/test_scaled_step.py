"""Steps in float16: one that overflowed is made again, so that none is missing in what sites report."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from client.training.scaled_step import NonFiniteLossError, make_step

RATE, FACTOR = 0.5, 3.0


class Half(torch.autograd.Function):
    """Passes its gradient on through float16, as the layers of a network do."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0].half().float()


def steps(count: int, scale: float, factor: float = FACTOR) -> tuple[float, list[float], torch.amp.GradScaler]:
    """The weight after so many steps of loss = factor x weight; which change of the gradient was seen; the scaler."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=True)
    seen: list[float] = []
    through_half: Any = Half.apply

    def change() -> None:
        assert weight.grad is not None
        seen.append(float(weight.grad))
        weight.grad += 1

    for _ in range(count):
        make_step(optimizer, scaler, lambda: factor * through_half(weight).sum(), change)
    return float(weight.detach()), seen, scaler


@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**30])
def test_all_steps_are_made_however_large_the_scale(scale: float) -> None:
    """With 65,536 and more, the first try has an infinite gradient, which moves nothing."""
    weight, seen, scaler = steps(3, scale)
    assert weight == -3 * RATE * (FACTOR + 1)
    assert sum(map(math.isfinite, seen)) == 3
    assert (seen[0] == math.inf) == (scale > 1)
    assert FACTOR * scaler.get_scale() < 65520


def test_gradients_that_no_scale_makes_finite_end_the_round() -> None:
    with pytest.raises(NonFiniteLossError, match="the gradients are not finite"):
        steps(1, 2.0**16, math.inf)
