from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from common.imaging.memory_order import in_c_order


def test_what_has_the_order_already_is_not_copied() -> None:
    array = np.arange(120, dtype=np.float32).reshape(1, 4, 5, 6)
    assert in_c_order(array) is array
    cropped = array[:, 1:3, :, 2:]
    assert in_c_order(cropped) is cropped
    turned = array[:, ::-1, :, ::-1]
    assert in_c_order(turned) is turned


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 130, 140, 150)])
def test_every_other_order_is_copied_voxel_by_voxel(shape: tuple[int, ...]) -> None:
    stored = np.random.default_rng(0).random(shape, dtype=np.float32)
    for order, flip in product(permutations((1, 2, 3)), (1, -1)):
        view = stored.transpose(0, *order)[..., ::flip]
        ordered = in_c_order(view)
        np.testing.assert_array_equal(ordered, view)
        distances = [abs(distance) for distance in ordered.strides]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] == ordered.itemsize
