from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, inflate_object_from_contents

from common.flower import CHUNK_BYTES
from common.protocol import Result, Task, pack_result, pack_task
from common.pulls import Limits, OversizedMessageError, TooManyObjectsError, check_contents, limits_of, replace_pulls
from common.transport import PIECE_BYTES, Encoding, pieces_of

RECORD = ConfigRecord({}).deflate()


def deflated(made: InflatableObject) -> dict[str, bytes]:
    return {name: part.deflate() for name, part in get_all_nested_objects(made).items()}


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
    replace_pulls(module, Limits(3, 1000))
    module.pull_objects(["a", "b", "c"], pull_object_fn=lambda identity: pulled.append(identity) or RECORD)
    with pytest.raises(TooManyObjectsError, match="4 objects"):
        module.pull_objects(["d", "e", "f", "g"], pull_object_fn=lambda identity: pulled.append(identity) or RECORD)
    assert sorted(pulled) == ["a", "b", "c"]


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("size", [1, 1000, 3_000_000])
def test_every_message_of_ours_has_few_enough_parts(size: int, encoding: Encoding) -> None:
    weights = np.arange(size, dtype=np.float32)
    result = Result("north", "r", 1, 9, 3, 4, 0.5, 0.5, dict.fromkeys(range(1, 20), 0.5), 1.0, 0.1, 0.5, 0.4)
    most = limits_of(len(pieces_of(size, encoding)))
    for content in (pack_task(Task("r", "d", 1, 3, True), weights), pack_result(result, weights, encoding)):
        count = 1 + len(list(iterate_object_tree(get_object_tree(content))))  # and the message itself
        assert count <= limits_of(len(pieces_of(size, "float32"))).objects
    assert count <= most.objects
    check_contents(deflated(content))


def test_a_piece_of_weights_is_one_object_of_content() -> None:
    assert CHUNK_BYTES >= PIECE_BYTES


def array_of(children: list[str], pieces: list[int]) -> bytes:
    """An array as nobody's program makes it, in Flower's form."""
    values = {"dtype": "u1", "shape": [1], "stype": "x", "arraychunk_ids": pieces}
    body = json.dumps(values).encode()
    return f"Array {','.join(children)} {len(body)}".encode() + HEAD_BODY_DIVIDER + body


def with_repetitions() -> tuple[str, dict[str, bytes]]:
    parts = deflated(Array("u1", (1000,), "x", bytes(1000)))
    piece = next(name for name, content in parts.items() if content.startswith(b"ArrayChunk"))
    repeated = array_of([piece], [0] * 1000)
    return get_object_id(repeated), {piece: parts[piece], get_object_id(repeated): repeated}


def with_arrays_in_arrays() -> tuple[str, dict[str, bytes]]:
    array = Array("u1", (1000,), "x", bytes(1000))
    outer = array_of([array.object_id], [0] * 20)
    return get_object_id(outer), deflated(array) | {get_object_id(outer): outer}


def with_a_long_record() -> tuple[str, dict[str, bytes]]:
    record = ConfigRecord({f"{index:x}": index for index in range(30_000)})
    return record.object_id, deflated(record)


@pytest.mark.parametrize("bomb", [with_repetitions, with_arrays_in_arrays, with_a_long_record])
def test_what_grows_when_it_is_put_together_is_given_up(
    bomb: Callable[[], tuple[str, dict[str, bytes]]], module: ModuleType
) -> None:
    name, parts = bomb()
    assert inflate_object_from_contents(name, dict(parts)), "Flower does it"
    replace_pulls(module, Limits(10, 500_000))
    with pytest.raises(OversizedMessageError):
        module.pull_objects(list(parts), pull_object_fn=parts.__getitem__)


def test_a_message_of_too_many_bytes_is_given_up_on_the_way(module: ModuleType) -> None:
    parts = {str(index): Array("u1", (index,), "x", bytes(index)) for index in range(100_000, 100_008)}
    contents = deflated(RecordDict({"update": ArrayRecord(parts)}))
    replace_pulls(module, Limits(50, 300_000))
    pulled = []
    with pytest.raises(OversizedMessageError, match="more than 300000"):
        module.pull_objects(list(contents), pull_object_fn=lambda name: pulled.append(name) or contents[name])
    assert len(pulled) < len(contents)


def test_equal_pieces_may_be_sent_once() -> None:
    equal = {str(index): Array("u1", (1000,), "x", bytes(1000)) for index in range(4)}
    check_contents(deflated(RecordDict({"update": ArrayRecord(equal)})))
