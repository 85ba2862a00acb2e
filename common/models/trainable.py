"""Partial training: selects the trained parameters and freezes the rest.

With differential privacy the norm of the noise grows with the square root of the number of trained parameters, so
training only a part of a network that was pretrained on public data can pay off (``deploy/docs/privacy.md``).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from common.models.unet3d import UNet3D

Trainable = Literal["all", "head", "norms", "head_and_norms", "decoder"]


def trainable_names(model: UNet3D, trainable: Trainable) -> frozenset[str]:
    """Return the names of the trained parameters, as in ``model.named_parameters()``.

    ``head``: the 1 x 1 x 1 convolutions that output class scores (one per decoder stage with deep supervision).
    ``norms``: scales and shifts of every GroupNorm. ``decoder``: the convolutions before upsampling, the decoder stages
    with their GroupNorms, and the heads.
    """
    names = {name for name, _ in model.named_parameters()}
    heads = {name for name in names if name.startswith("heads.")}
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.GroupNorm)
        for name, _ in module.named_parameters()
    }
    decoder = {name for name in names if name.startswith(("up.", "decoder."))} | heads
    chosen = {"all": names, "head": heads, "norms": norms, "head_and_norms": heads | norms, "decoder": decoder}
    return frozenset(chosen[trainable])


def train_only(model: UNet3D, trainable: Trainable) -> int:
    """Freeze all parameters except the chosen ones.

    Returns
    -------
    int
        Number of trained scalars.
    """
    chosen = trainable_names(model, trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
