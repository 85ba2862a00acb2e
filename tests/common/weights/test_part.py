"""A part of the weights in the flat vector: the norm layers of real networks, taken, put back and found."""

from __future__ import annotations

import numpy as np
import pytest

from common.models.trainable import trainable_names
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan
from common.weights.encoding import Vector
from common.weights.layout import WeightLayout
from common.weights.part import WeightPart, norm_part
from tests import tiny

PLANS = {
    "plain": tiny.plan().model,
    "residual": ModelPlan(channels=(8, 16, 16), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)), kernels=((3, 3, 3),) * 3,
                          blocks=(1, 2, 1), groups=4, residual=True, deep_supervision=True),
}  # fmt: skip


def mask(layout: WeightLayout, names: frozenset[str]) -> np.ndarray:
    """The slow version: one truth value per weight."""
    return np.concatenate([np.full(size, name in names) for name, size in layout.sizes.items()])


@pytest.mark.parametrize("kind", PLANS)
def test_the_norm_part_is_every_group_norm_and_nothing_else(kind: str) -> None:
    model = build_model(PLANS[kind])
    layout = WeightLayout.of(model)
    part = norm_part(layout)
    found = np.zeros(layout.size, np.float32)
    part.put(found, np.ones(part.size, np.float32))
    np.testing.assert_array_equal(found == 1, mask(layout, trainable_names(model, "norms")))


def test_what_is_taken_can_be_put_back() -> None:
    layout = WeightLayout({"a": (2, 2), "b": (3,), "c": (1,), "d": (2,)})
    part = WeightPart(layout, {"b", "d"})
    vector: Vector = np.arange(10, dtype=np.float32)
    taken = part.take(vector)
    assert taken.tolist() == [4, 5, 6, 8, 9]
    part.clear(vector)
    assert vector.tolist() == [0, 1, 2, 3, 0, 0, 0, 7, 0, 0]
    part.put(vector, taken)
    assert vector.tolist() == list(range(10))


def test_a_part_of_nothing_is_empty() -> None:
    part = WeightPart(WeightLayout({"a": (4,)}), ())
    assert part.size == 0 and part.take(np.ones(4, np.float32)).size == 0
    assert part.is_clear(np.ones(4, np.float32), 0)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 10])
def test_a_single_value_in_the_part_is_found_in_any_stretch(width: int) -> None:
    layout = WeightLayout({"a": (2,), "b": (3,), "c": (3,), "d": (2,)})
    part = WeightPart(layout, {"b", "d"})
    inside = mask(layout, frozenset({"b", "d"}))
    for place in range(10):
        vector = np.zeros(10, np.float32)
        vector[place] = 1e-30
        clear = [part.is_clear(vector[start : start + width], start) for start in range(0, 10, width)]
        assert all(clear) != inside[place]
