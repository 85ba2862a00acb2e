"""The parts of a Flower message, each hashed once.

Flower names every part of a message by its hash, and works out the names of large parts anew whenever it asks for them.
A part's name stands in what it belongs to, though, and an array keeps the names of its pieces.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import InflatableObject

Parts = dict[str, InflatableObject]


def name_arrays(record: ArrayRecord) -> ArrayRecord:
    """Works out the names of a record's arrays and their pieces, which it keeps as long as it is not changed."""
    for array in record.values():
        array.object_id  # noqa: B018 -- asking for it works it out
    return record


def parts_of(message: Message) -> tuple[ObjectTree, Parts]:
    """The names of a message's parts as a tree, and the parts by name, every one after those that belong to it."""
    parts: Parts = {}
    return _collect(message.object_id, message, parts), parts


def _collect(name: str, part: InflatableObject, parts: Parts) -> ObjectTree:
    below = [_collect(child_name, child, parts) for child_name, child in (part.children or {}).items()]
    parts[name] = part
    return ObjectTree(object_id=name, children=below)
