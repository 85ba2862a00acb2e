"""The parts of a Flower message, each hashed once.

Flower names every part of a message by its hash, and works out the names of large parts anew whenever it asks for them.
A part's name stands in what it belongs to, though, and an array keeps the names of its pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import InflatableObject
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import push_objects

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


def push(client: Any, messages: Iterable[Message], node: Node, run_id: int) -> list[str]:
    """Announces messages and hands over the parts that are wanted, as Flower's own programs do; the messages' names.

    Args:
        client: of a runtime interface.
        messages: with their names in their metadata.
        node, run_id: whose they are.
    """
    request, parts = PushAppMessagesRequest(), Parts()
    for message in messages:
        tree, own = parts_of(message)
        request.messages_list.append(message_to_proto(remove_content_from_message(message)))
        request.message_object_trees.append(tree)
        parts |= own
    answer = client.PushMessages(request)
    push_one = make_push_object_fn_protobuf(client.PushObject, node, run_id, answer.session_id)
    push_objects(parts, push_one, object_ids_to_push=set(answer.objects_to_push))
    return list(answer.message_ids)


def _collect(name: str, part: InflatableObject, parts: Parts) -> ObjectTree:
    below = [_collect(child_name, child, parts) for child_name, child in (part.children or {}).items()]
    parts[name] = part
    return ObjectTree(object_id=name, children=below)
