"""Layout of a model's weights in the flat vector that both sides exchange."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.formatting import counted
from common.weights.encoding import Vector

if TYPE_CHECKING:
    import torch


class WeightLayout:
    """Names, shapes and order of a model's weights in the flat vector.

    Parameters
    ----------
    shapes
        Parameter name -> shape, in the model's own order.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        self.size = sum(self.sizes.values())

    @classmethod
    def of(cls, model: torch.nn.Module) -> WeightLayout:
        """Return the layout of a model's state, which must be all floating-point."""
        return cls({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})

    def flatten(self, state: Mapping[str, torch.Tensor]) -> Vector:
        """Return all weights as one float32 vector of ``size`` entries, on the CPU."""
        vector = np.empty(self.size, np.float32)
        start = 0
        for name, size in self.sizes.items():
            vector[start : start + size] = state[name].detach().float().cpu().numpy().reshape(-1)
            start += size
        return vector

    def split(self, vector: Vector) -> dict[str, NDArray[np.float32]]:
        """Return views into ``vector`` by name, in the weights' shapes.

        Raises
        ------
        ProtocolError
            If the vector does not have ``size`` values.
        """
        if vector.shape != (self.size,):
            raise ProtocolError(f"weights have {counted(vector.size, 'value')}, the plan's model has {self.size}")
        named, start = {}, 0
        for name, shape in self.shapes.items():
            named[name] = vector[start : start + self.sizes[name]].reshape(shape)
            start += self.sizes[name]
        return named

    def load(self, model: torch.nn.Module, vector: Vector) -> None:
        """Copy ``vector`` into the model's weights, on their own device."""
        import torch

        state = model.state_dict()
        with torch.no_grad():
            for name, values in self.split(vector).items():
                # Copy, because PyTorch warns about read-only arrays such as those of mapped files.
                state[name].copy_(torch.from_numpy(np.array(values)))
