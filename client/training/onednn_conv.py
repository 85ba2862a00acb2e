"""oneDNN's 3D convolutions for single float32 samples on a CPU, forward and backward.

Torch uses its own kernel for a single sample of up to 20,480 values (not counting the last axis), which suits 2D
images. In 3D that kernel is two to five times slower: private steps, one patient at a time, took 1.6 times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LARGEST_FOR_TORCH = 20480
"""Values not counting the last axis; above this, Torch uses oneDNN itself (``ConvParams::use_mkldnn``)."""


def is_available() -> bool:
    """Return whether this Torch was built with oneDNN."""
    return bool(torch._C._has_mkldnn)


class OneDnnConvolutions(TorchFunctionMode):
    """Inside the context, ``nn.Conv3d`` uses oneDNN; so do its backward passes, even after the context ends."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or oneDNN in place of the convolution of ``nn.Conv3d``."""
        del types
        if func is torch.conv3d and len(args) == 7 and not isinstance(args[4], str):
            image, weight, bias, stride, padding, dilation, groups = args
            given = (image, weight, bias, padding, stride, dilation, groups)
            return _Convolution.apply(*given)  # type: ignore[no-untyped-call]  # -- torch's
        return func(*args, **(kwargs or {}))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 -- torch passes what apply was given, and one more
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        """Run ``torch.mkldnn_convolution``."""
        ctx.save_for_backward(image, weight)
        sizes = None if bias is None else [bias.numel()]
        ctx.settings = (sizes, stride, padding, dilation, False, [0] * len(stride), groups)
        output: Tensor = torch.mkldnn_convolution(image, weight, bias, padding, stride, dilation, groups)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of image, weight and bias."""
        (gradient,), (image, weight) = gradients, ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if image.numel() // image.shape[-1] > LARGEST_FOR_TORCH:
            return *_backward(gradient, image, weight, *ctx.settings, wanted), None, None, None, None
        # Tensors in oneDNN's own layout go to oneDNN, however small they are.
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
