"""How many weights a network has, from its plan alone."""

from __future__ import annotations

import math

from common.plan.base import Axes3
from common.plan.plan import ModelPlan

_NO_STRIDE = (1, 1, 1)


def weight_count(plan: ModelPlan) -> int:
    """Return the number of weights of ``common.models.unet3d.build_model``, which needs PyTorch to be asked itself."""
    total, inputs = 0, plan.in_channels
    block = _residual if plan.residual else _plain
    for outputs, kernel, stride, blocks in zip(plan.channels, plan.kernels, plan.strides, plan.blocks, strict=True):
        total += block(inputs, outputs, kernel, stride) + (blocks - 1) * block(outputs, outputs, kernel, _NO_STRIDE)
        inputs = outputs
    for stage, (fine, coarse) in enumerate(zip(plan.channels, plan.channels[1:], strict=False)):
        kernel = plan.kernels[stage]
        total += coarse * fine + fine + _plain(2 * fine, fine, kernel)
        total += (plan.decoder_blocks - 1) * _plain(fine, fine, kernel)
        if stage == 0 or plan.deep_supervision:
            total += (fine + 1) * plan.classes
    return total


def _plain(inputs: int, outputs: int, kernel: Axes3, stride: Axes3 = _NO_STRIDE) -> int:
    """Count a convolution without bias, and the scale and shift of its normalisation."""
    del stride
    return inputs * outputs * math.prod(kernel) + 2 * outputs


def _residual(inputs: int, outputs: int, kernel: Axes3, stride: Axes3) -> int:
    shortcut = inputs != outputs or stride != _NO_STRIDE
    both = _plain(inputs, outputs, kernel) + _plain(outputs, outputs, kernel)
    return both + (_plain(inputs, outputs, (1, 1, 1)) if shortcut else 0)
