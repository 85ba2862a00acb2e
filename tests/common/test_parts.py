"""Names and parts of a message against Flower's own functions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message.array import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from common import parts
from common.parts import message_name, name_arrays, name_of, parts_of, put_together, written


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Message:
    """One array of several pieces, two of them alike, another array that is the same as a third, and a record."""
    for name, value in (("_run_id", 7), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)
    pieces = np.zeros(2 * CHUNK_BYTES + 5, np.uint8)
    pieces[-1] = 1
    twins = {name: Array(np.arange(3, dtype=np.float32)) for name in ("b", "c")}
    arrays = ArrayRecord({"a": Array("uint8", pieces.shape, "raw", pieces.tobytes()), **twins})
    return Message(RecordDict({"weights": arrays, "task": ConfigRecord({"round": 3})}), 1, "train")


def test_they_are_flowers(message: Message) -> None:
    tree, parts = parts_of(message)
    with no_object_id_recompute():
        assert tree == get_object_tree(message)
        assert list(parts.items()) == list(get_all_nested_objects(message).items())


def test_an_array_is_hashed_when_it_is_named_and_not_again(message: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    monkeypatch.setattr(parts, "written", lambda part: hashed.append(len(part.data)) or written(part))
    monkeypatch.setattr(ArrayChunk, "deflate", lambda self: pytest.fail("Flower hashes it, too"))
    record = message.content["weights"]
    assert isinstance(record, ArrayRecord)
    name_arrays(record)
    assert sorted(hashed) == [5, 140, 140, CHUNK_BYTES, CHUNK_BYTES]  # small ones in NumPy's format
    parts_of(message)
    message_name(message)
    assert len(hashed) == 5


def test_a_part_is_written_as_flower_does(message: Message) -> None:
    _, parts = parts_of(message)
    kinds = {type(part) for part in parts.values()}
    assert kinds == {ArrayChunk, Array, ArrayRecord, ConfigRecord, RecordDict, Message}
    for part in parts.values():
        assert b"".join(written(part)) == part.deflate()


def test_what_is_put_together_is_what_flower_would_make(message: Message) -> None:
    tree, parts = parts_of(message)
    contents = {name: part.deflate() for name, part in parts.items()}
    flowers = inflate_object_from_contents(tree.object_id, dict(contents))
    ours = put_together(tree.object_id, dict(contents))
    assert isinstance(ours, Message)
    assert isinstance(flowers, Message)
    assert ours.content["task"] == flowers.content["task"]
    for name, array in flowers.content.array_records["weights"].items():
        mine = ours.content.array_records["weights"][name]
        assert (mine.dtype, mine.shape, mine.stype, bytes(mine.data)) == (*vars_of(array), array.data)
        assert name_of(mine) == array.object_id
    assert parts_of(ours)[0] == tree


def test_a_piece_is_not_copied(message: Message) -> None:
    tree, parts = parts_of(message)
    contents = {name: part.deflate() for name, part in parts.items()}
    memory = [np.frombuffer(content, np.uint8) for content in contents.values()]
    made = put_together(tree.object_id, contents)
    assert isinstance(made, Message)
    [small, _] = [made.content.array_records["weights"][name].data for name in "bc"]
    assert sum(np.shares_memory(np.frombuffer(small, np.uint8), piece) for piece in memory) == 1


def test_an_array_by_itself_is_put_together() -> None:
    whole = Array("uint8", (3,), "raw", b"abc")
    [(piece, chunk)] = whole.slice_array()
    made = put_together("array", {"array": whole.deflate(), piece: chunk.deflate()})
    assert isinstance(made, Array)
    assert (bytes(made.data), name_of(made)) == (b"abc", name_of(whole))


@pytest.mark.parametrize("head", [b"ArrayChunk  03", b"ArrayChunk  +3", b"ArrayChunk  4", b"ArrayChunk x 3"])
def test_a_piece_in_another_form_is_flowers_to_judge(head: bytes) -> None:
    """It would have another name than the one under which it came."""
    whole = Array("uint8", (3,), "raw", b"abc")
    [(piece, _)] = whole.slice_array()
    contents = {"array": whole.deflate(), piece: head + b"\0abc"}
    if b"x" in head:
        with pytest.raises(KeyError):
            put_together("array", contents)
        return
    made = put_together("array", contents)
    assert isinstance(made, Array)
    assert made.data == b"abc"
    assert name_of(made) == name_of(whole)


@pytest.mark.parametrize("indices", [[0, 0, 0], [], [1]])
def test_an_array_that_names_its_piece_otherwise_than_once_is_flowers_to_judge(indices: list[int]) -> None:
    whole = Array("uint8", (3,), "raw", b"abc")
    [(piece, chunk)] = whole.slice_array()
    body = json.dumps({"dtype": "uint8", "shape": [3], "stype": "raw", "arraychunk_ids": indices}).encode()
    contents = {"array": add_header_to_object_body(body, whole), piece: chunk.deflate()}
    if indices == [0, 0, 0]:
        made = put_together("array", contents)
        assert isinstance(made, Array)
        assert made.data == b"abc" * 3
    else:
        with pytest.raises((ValueError, IndexError)):
            put_together("array", contents)


def vars_of(array: Array) -> tuple[str, tuple[int, ...], str]:
    return array.dtype, array.shape, array.stype


def test_an_array_that_was_changed_has_another_name(message: Message) -> None:
    record = message.content["weights"]
    assert isinstance(record, ArrayRecord)
    name_arrays(record)
    before, _ = parts_of(message)
    record["b"].data = bytes(12)
    after, parts = parts_of(message)
    assert before.object_id != after.object_id
    assert after == get_object_tree(message)
    assert bytes(12) in [part.data for part in parts.values() if isinstance(part, ArrayChunk)]
