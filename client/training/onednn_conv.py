"""3D convolutions of one sample on a CPU in float32, forward and backward, by oneDNN.

Torch takes its own kernel for a single sample of up to 20,480 values (the last axis not counted), which suits 2D
images. In 3D it is two to five times slower: a private step, one patient at a time, took 1.6 times as long with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LARGEST_FOR_TORCH = 20480
"""Values without the last axis: above it Torch takes oneDNN itself (``ConvParams::use_mkldnn``)."""


def is_available() -> bool:
    """Whether this Torch was built with oneDNN."""
    return bool(torch._C._has_mkldnn)


class OneDnnConvolutions(TorchFunctionMode):
    """Within it, the convolutions of ``nn.Conv3d`` are oneDNN's; so are their backward passes, also after it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Calls ``func``, or oneDNN if it is the convolution of ``nn.Conv3d``."""
        del types
        if func is torch.conv3d and len(args) == 7 and not isinstance(args[4], str):
            image, weight, bias, stride, padding, dilation, groups = args
            return _Convolution.apply(image, weight, bias, padding, stride, dilation, groups)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        """``torch.mkldnn_convolution``."""
        ctx.save_for_backward(image, weight)
        sizes = None if bias is None else [bias.numel()]
        ctx.settings = (sizes, stride, padding, dilation, False, [0] * len(stride), groups)
        output: Tensor = torch.mkldnn_convolution(image, weight, bias, padding, stride, dilation, groups)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of image, weight and bias."""
        (gradient,), (image, weight) = gradients, ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if image.numel() // image.shape[-1] > LARGEST_FOR_TORCH:
            return *_backward(gradient, image, weight, *ctx.settings, wanted), None, None, None, None
        # Tensors of oneDNN's own kind go to oneDNN, however small they are.
        tensors = gradient.contiguous().to_mkldnn(), image.contiguous().to_mkldnn(), weight
        made = _backward(*tensors, *ctx.settings, [*wanted[:2], False])
        of_image, of_weight = (None if found is None else _dense(found) for found in made[:2])
        of_bias = gradient.sum((0, *range(2, gradient.ndim))) if wanted[2] else None
        return of_image, of_weight, of_bias, None, None, None, None


def _backward(*args: Any) -> tuple[Tensor | None, ...]:
    found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(*args)
    return found


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_mkldnn else tensor
