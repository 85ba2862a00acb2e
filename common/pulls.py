"""How the parts of a message are fetched, and what may be made of them.

Flower puts together whatever it has fetched. A part can name the same piece of an array a thousand times, and is then
a thousand pieces in memory; a record of many short entries takes thirty times its own bytes. So where somebody else has
written the message, both are added up before.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from flwr.app import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

from common.errors import FedvoxError
from common.flower import CHUNK_BYTES

SHORTEST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5
SHARE_OF_WAIT = 0.05
LOOK_UP_SECONDS = 1.0
LARGEST_RECORD = 2**18
"""Bytes of a part that is not a piece of an array; Flower's list of 500 pieces has 75 kB."""


class TooManyObjectsError(FedvoxError):
    """A message has more parts than any message of ours."""


class OversizedMessageError(FedvoxError):
    """A message is larger, or would become larger, than any message of ours."""


@dataclass(frozen=True)
class Limits:
    """How large a message may be: the number of Flower's objects, and the bytes of all of them together."""

    objects: int
    bytes: int


def pull_patiently(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **options: Any) -> dict[str, bytes]:
    """Flower's ``pull_objects``, with other pauses while objects are still on their way.

    A message is announced before its content has arrived, so that almost every message with weights is waited for, at
    both ends. Flower pauses for 1, 2, 4 seconds; here it is a twentieth of the time waited so far. From time to time
    Flower is let in, to see whether it is to go on. As before, until the message's time has run out.

    Args:
        object_ids: of all objects.
        pull_object_fn: raises ``ObjectUnavailableError`` while an object is on its way.
        options: further ones of Flower's.
    """
    began = time.monotonic()

    def wait(identity: str) -> bytes:
        asked = time.monotonic()
        while True:
            try:
                return pull_object_fn(identity)
            except ObjectUnavailableError:
                now = time.monotonic()
                if now - asked > LOOK_UP_SECONDS:
                    raise
            time.sleep(min(max(SHARE_OF_WAIT * (now - began), SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))

    return pull_objects(
        object_ids,
        wait,
        max_tries_per_object=None,
        initial_backoff=SHORTEST_PAUSE_SECONDS,
        backoff_cap=SHORTEST_PAUSE_SECONDS,
        **options,
    )


def replace_pulls(module: ModuleType, limits: Limits | None = None) -> None:
    """Lets a module of Flower pull objects by ``pull_patiently``.

    Args:
        module: one that has imported ``pull_objects``.
        limits: a message that is larger, or would be once it is put together, is given up; None takes any.
    """

    def quicker(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **options: Any) -> dict[str, bytes]:
        if limits is not None and len(object_ids) > limits.objects:
            raise TooManyObjectsError(
                f"a message of {len(object_ids)} objects, {limits.objects} is the most there may be"
            )
        counted = pull_object_fn if limits is None else _counted(pull_object_fn, limits.bytes)
        contents = pull_patiently(object_ids, counted, **options)
        if limits is not None:
            check_contents(contents)
        return contents

    module.pull_objects = quicker  # type: ignore[attr-defined]


def limits_of(pieces: int) -> Limits:
    """What Flower makes of a message of ours with so many pieces of weights, or somewhat more."""
    # Each piece is an array and its content; around them are the message, its records and their container.
    return Limits(2 * pieces + 16, pieces * CHUNK_BYTES + LARGEST_RECORD * (pieces + 16))


def check_contents(contents: Mapping[str, bytes]) -> None:
    """Returns if the parts of a message, put together, take no more memory than by themselves.

    Args:
        contents: name -> bytes of all parts.

    Raises:
        OversizedMessageError: they take more, or an array is made of something else than pieces.
        Exception: of any kind, a part is not in Flower's form.
    """
    heads = {name: get_object_head_values_from_object_content(content)[:2] for name, content in contents.items()}
    pieces = {name: len(contents[name]) for name, (kind, _) in heads.items() if kind == ArrayChunk.__qualname__}
    total = 0
    for name in contents.keys() - pieces.keys():
        kind, children = heads[name]
        if len(contents[name]) > LARGEST_RECORD:
            raise OversizedMessageError(f"a {kind[:20]} of {len(contents[name])} bytes, {LARGEST_RECORD} are the most")
        if kind != Array.__qualname__:
            continue
        if not pieces.keys() >= set(children):
            raise OversizedMessageError("an array that is made of something else than pieces")
        order = json.loads(get_object_body(contents[name], Array))["arraychunk_ids"]
        total += sum(pieces[children[index]] for index in order)
    if total > sum(pieces.values()):
        raise OversizedMessageError(f"arrays of {total} bytes, made of {sum(pieces.values())}")


def _counted(pull: Callable[[str], bytes], most: int) -> Callable[[str], bytes]:
    pulled, lock = 0, threading.Lock()

    def pull_and_count(identity: str) -> bytes:
        nonlocal pulled
        content = pull(identity)
        with lock:
            pulled += len(content)
            if pulled > most:
                raise OversizedMessageError(f"a message of more than {most} bytes")
        return content

    return pull_and_count
