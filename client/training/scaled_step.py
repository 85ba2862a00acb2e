"""A step of an optimizer that float16 may overflow.

Small gradients vanish in float16, so its loss is multiplied by a scale. If that is too large, gradients are infinite,
and ``GradScaler`` leaves the step out. Algorithms that divide an update by its number of steps need all of them, so
here the step is made again, with the same patches and half the scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import FedvoxError

MOST_TRIES = 40
"""The scale begins at 2^16; below 2^-24, no gradient of a finite loss overflows."""


class NonFiniteLossError(FedvoxError):
    """The loss or a weight became infinite or NaN; the update would poison the model and is not sent."""


def make_step(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    compute_loss: Callable[[], Tensor],
    change_gradients: Callable[[], None],
) -> Tensor:
    """Make one step, however often it has to be tried.

    Parameters
    ----------
    optimizer
        Its parameters get the gradients.
    scaler
        Chooses the scale; without float16 it is disabled, and the first try is the step.
    compute_loss
        Returns the loss of the step's patches.
    change_gradients
        Adds to the gradients and clips them, after the scale is taken out.

    Returns
    -------
    Tensor
        The loss.

    Raises
    ------
    NonFiniteLossError
        No scale gives finite gradients.
    """
    for _ in range(MOST_TRIES):
        optimizer.zero_grad(set_to_none=True)
        loss = compute_loss()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # -- torch's
        scaler.unscale_(optimizer)
        change_gradients()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:
            return loss.detach()
    raise NonFiniteLossError(
        "the gradients are not finite; lower training.learning_rate or check the scans' intensities"
    )
