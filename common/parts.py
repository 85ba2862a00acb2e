"""The parts of a Flower message, each hashed once and copied as seldom as can be.

Flower names every part of a message by its hash, and works out the names of large parts anew whenever it asks for them.
A part's name stands in what it belongs to, though, and an array keeps the names of its pieces. And where Flower writes
a piece down, or makes an array of it, it copies it three times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Self

from flwr.app import Array, ArrayRecord, Message
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_BYTES
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_id,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    push_object_contents_from_iterable,
    validate_object_content,
)

from common.large_objects import Buffer, PushedObject

Parts = dict[str, InflatableObject]


def name_of(array: Array) -> str:
    """An array's name; it keeps those of its pieces as long as it is not changed."""
    if "_chunks" not in array.__dict__:
        array.__dict__["_chunks"] = _pieces_of(array)
    # Not its property: the record that it is in would no longer notice a change.
    return get_object_id(array.deflate())


def name_arrays(record: ArrayRecord) -> ArrayRecord:
    """Works out the names of the pieces of a record's arrays."""
    for array in record.values():
        name_of(array)
    return record


def message_name(message: Message) -> str:
    """A message's name."""
    for record in message.content.array_records.values() if message.has_content() else ():
        name_arrays(record)
    return message.object_id


def parts_of(message: Message) -> tuple[ObjectTree, Parts]:
    """The names of a message's parts as a tree, and the parts by name, every one after those that belong to it."""
    parts: Parts = {}
    return _collect(message_name(message), message, parts), parts


def push(client: Any, messages: Iterable[Message], node: Node, run_id: int) -> list[str]:
    """Announces messages and hands over the parts that are wanted, as Flower's own programs do; the messages' names.

    Args:
        client: of a runtime interface.
        messages: with their names in their metadata.
        node, run_id: whose they are.

    Raises:
        ObjectPushError: a part is not taken.
    """
    request, parts = PushAppMessagesRequest(), Parts()
    for message in messages:
        tree, own = parts_of(message)
        request.messages_list.append(message_to_proto(remove_content_from_message(message)))
        request.message_object_trees.append(tree)
        parts |= own
    answer = client.PushMessages(request)
    session = answer.session_id

    def push_one(name: str, content: Any) -> None:
        head = PushObjectRequest(node=node, run_id=run_id, object_id=name, session_id=session)
        if not client.PushObject(PushedObject(head, *content)).stored:
            raise ObjectPushError(name, run_id, session)

    wanted = set(answer.objects_to_push)
    contents: Any = ((name, written(part)) for name, part in parts.items() if name in wanted)
    push_object_contents_from_iterable(contents, push_one)
    return list(answer.message_ids)


def written(part: InflatableObject) -> list[Buffer]:
    """A part in Flower's form, in sections; that of a piece is not copied."""
    if not isinstance(part, ArrayChunk):
        return [part.deflate()]
    return [_head_of_piece(len(part.data)), part.data]


def check_named(name: str, content: bytes) -> None:
    """Returns if a part in Flower's form is the one with this name.

    Raises:
        ValueError: it is not, or is none of Flower's.
    """
    if get_object_id(content) != name:
        raise ValueError(f"object {name} does not have this digest")
    validate_object_content(content=content)


def put_together(name: str, contents: dict[str, bytes]) -> InflatableObject:
    """A message, or an array by itself, from its parts in Flower's form.

    Args:
        name: of the message, or the array.
        contents: of it and all its parts, by their names, which whoever stored them has checked; of no use afterwards.

    Raises:
        Exception: of any kind, a part is missing or not in Flower's form.
    """
    arrays: Parts = {}
    for identity in list(contents):
        kind, children, _ = get_object_head_values_from_object_content(contents[identity])
        if kind != Array.__qualname__ or len(children) != 1 or children[0] not in contents:
            continue
        piece = contents[children[0]]
        # In any other form than ours a piece may be as large as it likes to be read, and have several names.
        usual = piece.startswith(_head_of_piece(len(piece) - piece.find(HEAD_BODY_DIVIDER, 0, 64) - 1))
        if usual and json.loads(get_object_body(contents[identity], Array))["arraychunk_ids"] == [0]:
            array = Array.inflate(contents[identity], {children[0]: ArrayChunk(memoryview(b""))})
            array.data = _Pending(children[0], piece)
            arrays[identity] = array
    made = inflate_object_from_contents(name, contents, objects=arrays)
    if isinstance(made, Array):
        _fill_in(made)
    for record in made.content.array_records.values() if isinstance(made, Message) and made.has_content() else ():
        for array in record.values():
            _fill_in(array)
    return made


def _fill_in(array: Array) -> None:
    """Gives an array its data, and its piece the name under which it came."""
    if isinstance(array.data, _Pending):
        piece, body = array.data.name, array.data.body
        # To everybody who reads them these are bytes.
        array.data = body  # type: ignore[assignment]
        array.__dict__["_chunks"] = [(piece, ArrayChunk(body))]


class _Pending(bytes):
    """Stands for the data of an array, which Flower takes as ``bytes`` only, while its message is put together."""

    name: str
    body: memoryview

    def __new__(cls, name: str, piece: bytes) -> Self:
        made = super().__new__(cls)
        made.name = name
        made.body = memoryview(piece)[piece.find(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]
        return made


def _head_of_piece(size: int) -> bytes:
    return HEAD_VALUE_DIVIDER.join([ArrayChunk.__qualname__, "", str(size)]).encode() + HEAD_BODY_DIVIDER


def _pieces_of(array: Array) -> list[tuple[str, InflatableObject]]:
    """What ``Array.slice_array`` makes."""
    view = memoryview(array.data)
    pieces = [ArrayChunk(view[start : start + CHUNK_BYTES]) for start in range(0, len(view), CHUNK_BYTES)]
    named: list[tuple[str, InflatableObject]] = []
    for piece in pieces:
        digest = hashlib.sha256()
        for section in written(piece):
            digest.update(section)
        named.append((digest.hexdigest(), piece))
    return named


def _collect(name: str, part: InflatableObject, parts: Parts) -> ObjectTree:
    below = [_collect(child_name, child, parts) for child_name, child in (part.children or {}).items()]
    parts[name] = part
    return ObjectTree(object_id=name, children=below)
