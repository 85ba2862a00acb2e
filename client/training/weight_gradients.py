"""Weight gradients of 3D convolutions on CPUs without AVX-512.

oneDNN's kernels for AVX2 take half the time for this gradient when channels come last. The same order makes the
backward pass of GroupNorm several times slower, so the network keeps channels first, and only what this gradient is
computed from is reordered. A step takes 0.83 times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from client.training.onednn_conv import is_available

FEWEST_CHANNELS = 8
"""With fewer, reordering gains nothing."""


def is_faster(device: torch.device, autocast: torch.dtype | None, capability: str) -> bool:
    """Return whether ``ChannelsLastWeightGradients`` pays off.

    Parameters
    ----------
    device
        Where the network is.
    autocast
        Number format of the convolutions; None is float32.
    capability
        As ``torch.backends.cpu.get_cpu_capability`` returns it.
    """
    # Measured for AVX2 alone.
    return device.type == "cpu" and autocast is None and capability == "AVX2" and is_available()


class ChannelsLastWeightGradients(TorchFunctionMode):
    """Inside the context, batches of float32 samples go through ``nn.Conv3d`` with faster weight gradients."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or a convolution with the other backward pass in place of that of ``nn.Conv3d``."""
        del types
        if func is torch.conv3d and len(args) == 7 and _gains(args[0], args[1]) and not isinstance(args[4], str):
            convolve: Any = _Convolution.apply
            return convolve(*args)
        return func(*args, **(kwargs or {}))


def _gains(image: Tensor, weight: Tensor) -> bool:
    # A single sample may be better off with client.training.onednn_conv; a 1 x 1 x 1 convolution is a product already.
    return len(image) > 1 and image.shape[1] >= FEWEST_CHANNELS and weight[0, 0].numel() > 1


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        """Convolve; settings are stride, padding, dilation and groups."""
        *geometry, groups = settings
        ctx.save_for_backward(image, weight)
        ctx.settings = (None if bias is None else [bias.numel()], *geometry, False, [0, 0, 0], groups)
        output: Tensor = torch.ops.aten.convolution(image, weight, bias, *geometry, False, [0, 0, 0], groups)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of image, weight and bias."""
        (gradient,), (image, weight) = gradients, ctx.saved_tensors
        of_image, of_weight, of_bias = ctx.needs_input_grad[:3]
        backward = torch.ops.aten.convolution_backward
        found = list(backward(gradient, image, weight, *ctx.settings, [of_image, False, of_bias]))
        if of_weight:
            ordered = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (gradient, image, weight))
            found[1] = backward(*ordered, *ctx.settings, [False, True, False])[1].contiguous()
        return *found, None, None, None, None
