"""How much memory a network's activations take, from its plan alone."""

from __future__ import annotations

import math

from common.plan.base import Axes3
from common.plan.plan import ModelPlan

TRAINING_ADVICE = "lower model.patch_size or training.batch_size, or use a machine with more memory"


def training_bytes(plan: ModelPlan, patch_size: Axes3, batch_size: int, value_bytes: int = 4) -> int:
    """Return the bytes that a training step at least keeps for its backward pass.

    Each convolution keeps its output and that of the normalisation after it; a decoder stage also keeps the features
    that it joins. Working memory comes on top.

    Parameters
    ----------
    plan, patch_size, batch_size
        The network, and the patches of a step.
    value_bytes
        Bytes of a value: 4 for float32, 2 under autocast.
    """
    voxels, total = math.prod(patch_size), 0
    last = len(plan.channels) - 1
    for stage, (stride, channels) in enumerate(zip(plan.strides, plan.channels, strict=True)):
        voxels //= math.prod(stride)
        kept = 2 * plan.blocks[stage]
        if stage < last:
            kept += 2 * plan.decoder_blocks + 2
        total += voxels * channels * kept
    return value_bytes * batch_size * total
