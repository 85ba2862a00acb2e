"""Which part of a network is trained; the rest keeps the weights that it starts from.

Under differential privacy the noise of a step grows with the square root of the number of trained parameters, so
training less of a network that was pre-trained on public data can pay (``deploy/docs/privacy.md``).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from common.models.unet3d import UNet3D

Trainable = Literal["all", "head", "norms", "head_and_norms", "decoder"]


def trainable_names(model: UNet3D, trainable: Trainable) -> frozenset[str]:
    """Names of the parameters that a choice trains, as in ``model.named_parameters()``.

    ``head``: weights and biases of the 1 x 1 x 1 convolutions that give the classes (one of each decoder stage under
    deep supervision). ``norms``: scales and shifts of every GroupNorm. ``decoder``: all from the coarsest feature map
    upwards: the convolutions before upsampling, the decoder's stages with their GroupNorms, and the heads.
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
    """Lets gradients flow to the chosen parameters alone.

    Returns
    -------
    int
        How many numbers are trained.
    """
    chosen = trainable_names(model, trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
