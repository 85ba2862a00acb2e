"""What the audit log says of an answer: nothing that it holds is missing, and the hash covers all of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from common.protocol.codec import pack
from common.protocol.manifest import manifest_of
from common.protocol.messages import Result

UPDATE = "a" * 64
RESULT = Result("a", "run", 2, 5, 2, 4, 0.5, 0.25, {1: 0.5, 2: math.nan}, 3.0, 1.0, 1.0, 1.0, update=UPDATE)


def test_it_says_what_is_in_the_answer_and_beside_it() -> None:
    text = pack(RESULT)
    manifest = manifest_of(text, 4000)
    assert (manifest["update"], manifest["update_bytes"]) == (UPDATE, 4000)
    assert manifest["bytes"] == len(text) + 4000
    assert manifest["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert set(manifest["fields"]) == set(vars(RESULT))
    assert (manifest["fields"]["site"], manifest["fields"]["examples"], manifest["fields"]["epsilon"]) == ("a", 5, None)
    assert manifest["fields"]["dice"] == {"1": 0.5, "2": None}


def test_an_answer_without_an_update_has_none() -> None:
    manifest = manifest_of(pack(replace(RESULT, update=None)))
    assert (manifest["update"], manifest["update_bytes"]) == (None, 0)


def test_the_hash_changes_with_any_field_and_with_the_update() -> None:
    changes: list[dict[str, object]] = [{}, {"round": 9}, {"examples": 9}, {"dice": {1: 0.5}}, {"update": "b" * 64}]
    assert len({manifest_of(pack(replace(RESULT, **change)))["sha256"] for change in changes}) == len(changes)  # type: ignore[arg-type]
