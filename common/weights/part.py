"""A part of a model's weights, as places in the flat vector."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from common.weights.encoding import Vector
from common.weights.layout import WeightLayout


class WeightPart:
    """Some of a model's weights.

    Parameters
    ----------
    layout
        The layout of the whole vector.
    names
        Names of the part's weights.
    """

    def __init__(self, layout: WeightLayout, names: Collection[str]) -> None:
        self.places: list[slice] = []
        start = 0
        for name, size in layout.sizes.items():
            if name in names:
                self.places.append(slice(start, start + size))
            start += size
        self.size = sum(place.stop - place.start for place in self.places)

    def take(self, vector: Vector) -> Vector:
        """Return a copy of the part, as a vector of ``size`` values."""
        return np.concatenate([np.empty(0, np.float32), *(vector[place] for place in self.places)])

    def put(self, vector: Vector, values: Vector) -> None:
        """Write the part into a whole vector."""
        start = 0
        for place in self.places:
            stop = start + place.stop - place.start
            vector[place] = values[start:stop]
            start = stop

    def clear(self, vector: Vector) -> None:
        """Set the part to zero in a whole vector."""
        for place in self.places:
            vector[place] = 0

    def is_clear(self, values: Vector, start: int) -> bool:
        """Return whether a stretch of a whole vector, from ``start`` on, is zero wherever it belongs to the part."""
        return not any(values[max(place.start - start, 0) : max(place.stop - start, 0)].any() for place in self.places)


def norm_part(layout: WeightLayout) -> WeightPart:
    """Return the scales and shifts of the norm layers: of all weights, only a norm layer's has one axis."""
    weights = {name for name, shape in layout.shapes.items() if name.endswith(".weight") and len(shape) == 1}
    return WeightPart(layout, weights | {name.removesuffix("weight") + "bias" for name in weights})
