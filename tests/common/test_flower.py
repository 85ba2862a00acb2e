from __future__ import annotations

import time
from types import ModuleType

import numpy as np
import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

from common.flower import CHUNK_BYTES, TooManyObjectsError, most_objects_of, replace_pulls
from common.protocol import Result, Task, pack_result, pack_task
from common.transport import PIECE_BYTES, Encoding, pieces_of


@pytest.fixture
def module() -> ModuleType:
    """A module that has imported Flower's function."""
    made = ModuleType("user_of_flower")
    made.pull_objects = inflatable_utils.pull_objects  # type: ignore[attr-defined]
    return made


def test_what_is_late_is_asked_for_again_soon(module: ModuleType) -> None:
    asked: dict[str, int] = {}

    def pull(identity: str) -> bytes:
        asked[identity] = asked.get(identity, 0) + 1
        if asked[identity] <= 3:
            raise ObjectUnavailableError(identity)
        return identity.encode()

    replace_pulls(module)
    began = time.monotonic()
    assert module.pull_objects(["a", "b"], pull_object_fn=pull) == {"a": b"a", "b": b"b"}
    assert asked == {"a": 4, "b": 4}
    # Flower's own pauses would be 1, 2 and 4 s.
    assert time.monotonic() - began < 4


def test_a_message_of_too_many_parts_is_not_pulled(module: ModuleType) -> None:
    pulled = []
    replace_pulls(module, most_objects=3)
    module.pull_objects(["a", "b", "c"], pull_object_fn=lambda identity: pulled.append(identity) or b"")
    with pytest.raises(TooManyObjectsError, match="4 objects"):
        module.pull_objects(["d", "e", "f", "g"], pull_object_fn=lambda identity: pulled.append(identity) or b"")
    assert sorted(pulled) == ["a", "b", "c"]


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("size", [1, 1000, 3_000_000])
def test_every_message_of_ours_has_few_enough_parts(size: int, encoding: Encoding) -> None:
    weights = np.arange(size, dtype=np.float32)
    result = Result("north", "r", 1, 9, 3, 4, 0.5, 0.5, dict.fromkeys(range(1, 20), 0.5), 1.0, 0.1, 0.5, 0.4)
    most = most_objects_of(len(pieces_of(size, encoding)))
    for content in (pack_task(Task("r", "d", 1, 3, True), weights), pack_result(result, weights, encoding)):
        count = 1 + len(list(iterate_object_tree(get_object_tree(content))))  # and the message itself
        assert count <= most_objects_of(len(pieces_of(size, "float32")))
    assert count <= most


def test_a_piece_of_weights_is_one_object_of_content() -> None:
    assert CHUNK_BYTES >= PIECE_BYTES
