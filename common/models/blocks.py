"""The building blocks of the U-Net.

Every layer treats each sample of a batch alone: GroupNorm instead of batch statistics, zero padding only, and no
operation in place, so that per-sample gradients are exact whether they come from hooks, from ``torch.func`` or from
one sample at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.plan.base import Axes3

NEGATIVE_SLOPE = 0.01


def same_padding_conv(inputs: int, outputs: int, kernel: Axes3, stride: Axes3 = (1, 1, 1)) -> nn.Conv3d:
    """A convolution without bias whose output has the size of its input divided by the stride.

    It has no bias because a normalisation, which follows in every use, takes any constant away again.
    """
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)


class ConvBlock(nn.Module):
    """Convolution, GroupNorm (Wu and He, 2018), leaky ReLU.

    Maps (batch, inputs, x, y, z) to (batch, outputs, x / stride, y / stride, z / stride).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Axes3, stride: Axes3, groups: int) -> None:
        super().__init__()
        self.conv = same_padding_conv(inputs, outputs, kernel, stride)
        self.norm = nn.GroupNorm(groups, outputs)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated feature map; the input is left as it is."""
        activated: Tensor = self.activation(self.norm(self.conv(x)))
        return activated


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut around them (He et al., 2016), GroupNorm in place of batch normalisation.

    The shortcut is the input itself, or a 1 x 1 x 1 convolution and a normalisation where the shape changes.
    Shapes are those of ConvBlock.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Axes3, stride: Axes3, groups: int) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel, stride, groups)
        self.conv = same_padding_conv(outputs, outputs, kernel)
        self.norm = nn.GroupNorm(groups, outputs)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != (1, 1, 1):
            self.shortcut = nn.Sequential(
                same_padding_conv(inputs, outputs, (1, 1, 1), stride), nn.GroupNorm(groups, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of both ways; the input is left as it is."""
        activated: Tensor = self.activation(self.norm(self.conv(self.first(x))) + self.shortcut(x))
        return activated


class UpBlock(nn.Module):
    """Brings a coarse feature map to the size of a skip and joins both: convolution, upsampling, concatenation.

    The 1 x 1 x 1 convolution takes the channels to those of the skip. It comes before the upsampling because the two
    commute and it then costs an eighth. Nearest-neighbour upsampling is exact in bfloat16, seven times faster than
    trilinear on CPUs, and the convolutions that follow smooth it.
    """

    def __init__(self, coarse: int, fine: int, scale: Axes3) -> None:
        super().__init__()
        self.project = nn.Conv3d(coarse, fine, 1)
        self.scale = tuple(float(factor) for factor in scale)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Join (batch, coarse, x, y, z) and the skip to (batch, 2 * fine, x * scale, y * scale, z * scale)."""
        upsampled = F.interpolate(self.project(coarse), scale_factor=self.scale, mode="nearest")
        return torch.cat([upsampled, skip], dim=1)
