"""Names and parts of a message against Flower's own functions."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message.array import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.task_identity import TaskIdentity

from common.parts import name_arrays, parts_of


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
    deflate = ArrayChunk.deflate
    monkeypatch.setattr(ArrayChunk, "deflate", lambda self: hashed.append(len(self.data)) or deflate(self))
    record = message.content["weights"]
    assert isinstance(record, ArrayRecord)
    name_arrays(record)
    assert sorted(hashed) == [5, 140, 140, CHUNK_BYTES, CHUNK_BYTES]  # small ones in NumPy's format
    parts_of(message)
    assert len(hashed) == 5


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
