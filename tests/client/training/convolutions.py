"""What a convolution gives and learns, to compare ways to compute it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def outcome(layer: nn.Conv3d, image: Tensor) -> list[Tensor]:
    """The output, and the gradients of image, weight and bias for a loss that weighs every value differently."""
    image = image.clone().requires_grad_()
    layer.zero_grad()
    output = layer(image)
    (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    gradients = [image.grad, *(parameter.grad for parameter in layer.parameters())]
    return [output.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)]
