"""The manifest of a message: nothing that a message holds is missing from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from common.manifest import manifest_of
from common.messages import Result
from common.protocol import pack_result
from common.transport import Encoding, encoded_bytes

RESULT = Result("a", "run", 2, 5, 2, 4, 0.5, 0.25, {1: 0.5, 2: math.nan}, 3.0, 1.0, 1.0, 1.0)


def message(encoding: Encoding = "float32", **changes: object) -> RecordDict:
    update = np.linspace(-1, 1, 1000, dtype=np.float32)
    return pack_result(Result(**(vars(RESULT) | changes)), update, encoding)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
def test_it_says_what_is_in_the_message(encoding: Encoding) -> None:
    manifest = manifest_of(message(encoding))
    assert manifest["tensors"] == [
        {"name": "update/00000", "dtype": encoding, "shape": [1000], "bytes": encoded_bytes(1000, encoding)}
    ]
    assert manifest["tensor_bytes"] == encoded_bytes(1000, encoding) < manifest["bytes"]
    assert manifest["fields"]["identity"]["site"] == "a"
    numbers = manifest["fields"]["numbers"]
    assert (numbers["examples"], numbers["train_loss"], numbers["epsilon"]) == (5, 0.5, None)
    assert (numbers["dice_labels"], numbers["dice_values"]) == ([1, 2], [0.5, None])


def test_the_hash_is_the_same_at_both_ends() -> None:
    sent = message()
    received = recorddict_from_proto(recorddict_to_proto(sent))
    assert manifest_of(received) == manifest_of(sent)


def test_the_hash_changes_with_anything_in_the_message() -> None:
    hashes = {manifest_of(message())["sha256"], manifest_of(pack_result(RESULT, None))["sha256"]}
    hashes |= {manifest_of(message(**{name: 9}))["sha256"] for name in ("round", "examples", "steps")}
    hashes.add(manifest_of(message(dice={1: 0.5, 2: 0.0}))["sha256"])
    bit = message()
    data = bytearray(bit["update"]["00000"].data)
    data[17] ^= 1
    bit["update"]["00000"] = Array("float32", (1000,), bit["update"]["00000"].stype, bytes(data))
    renamed = message()
    renamed["update"]["00001"] = renamed["update"].pop("00000")
    reshaped = message()
    reshaped["update"]["00000"] = Array("float32", (10, 100), "s", message()["update"]["00000"].data)
    hashes |= {manifest_of(records)["sha256"] for records in (bit, renamed, reshaped)}
    assert len(hashes) == 9
