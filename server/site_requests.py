"""What a site may ask of SuperLink, beyond who it is.

Flower checks that a request comes from the node that it names, and believes the rest of it. A site could so announce a
message as the server's own, to the server app, which takes it for the answer of whomever it asks just then, or to
another site; it could answer under another node's number; it could take the announcement of its own task over, which
breaks off the upload to all sites; it could keep the database busy for minutes with one list of parts; and it could
have or remove any part of a message whose name it knows. Here a node sends replies of its own and nothing else, and has
to do with parts of its own messages alone. Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from logging import WARNING
from pathlib import Path
from typing import Any, cast

from fastapi import HTTPException, Request
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import log
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import ObjectChild
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.routers.fleet import node_auth
from google.protobuf.message import Message  # type: ignore[import-untyped]
from sqlalchemy import exists, literal, or_, select

from common.large_objects import PushedObject
from server.app_lock import RUN_VARIABLE, most_parts

LARGEST_HEADER = 65536
"""Bytes of a reply without its parts: addresses, and a code if it is an error."""
_NAME = re.compile(r"[0-9a-f]{64}\Z")
_authenticate = node_auth.authenticate_node


class NotAllowedError(HTTPException):
    """A request that a node may not make; what is wrong stands in SuperLink's log alone."""

    def __init__(self, reason: str) -> None:
        super().__init__(403, "This node may not do that")
        self.reason = reason


def admit_request(request: Request) -> None:
    """Returns if a request comes from the node that it names, and that node may make it.

    Raises:
        HTTPException: with status 401 as Flower's own check, or 403.
    """
    _authenticate(request)
    content = request.state.protobuf_request
    check = _CHECKS.get(type(content))
    if check is None:
        return
    try:
        check(content, cast(SqlLinkState, get_linkstate(request)))
    except NotAllowedError as error:
        log(WARNING, "[%s] node %s is refused: %s", request.url.path, content.node.node_id, error.reason)
        raise


def check_all_requests() -> None:
    """Changes Flower's check in this process: from now on it is ``admit_request``."""
    node_auth.authenticate_node = admit_request


def _reply(request: PushMessagesRequest, state: SqlLinkState) -> None:
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise NotAllowedError("not one reply at a time")
    message, [tree] = request.messages_list[0], request.message_object_trees
    about = message.metadata
    if about.src_node_id != request.node.node_id:
        raise NotAllowedError("a message of somebody else")
    if about.dst_node_id != SUPERLINK_NODE_ID or not about.reply_to_message_id:
        raise NotAllowedError("a message that is no reply")
    if message.ByteSize() > LARGEST_HEADER:
        raise NotAllowedError("a message that is not announced in parts")
    _name(about.reply_to_message_id)
    if tree.object_id != about.message_id:
        raise NotAllowedError("parts of another message")
    folder = os.environ.get(RUN_VARIABLE)
    for part in _first(tree, most_parts(Path(folder) if folder else None)):
        _name(part.object_id)
    with state.session() as session:
        # Whoever announces a message anew ends the upload of whoever did so before.
        if session.scalar(select(exists().where(MessageIns.message_id == tree.object_id))):
            raise NotAllowedError("a message of the server's")


def _part_up(request: PushObjectRequest, state: SqlLinkState) -> None:
    del state
    _name(request.object_id)


def _part_down(request: PullObjectRequest, state: SqlLinkState) -> None:
    """Of a part that is there, every message that it belongs to is looked up; one must be to this node."""
    _name(request.object_id)
    if request.object_id not in state.object_store:
        return
    above = select(literal(request.object_id).label("object_id")).cte("above", recursive=True)
    above = above.union(select(ObjectChild.parent_id).join(above, ObjectChild.child_id == above.c.object_id))
    mine = MessageIns.dst_node_id == uint64_to_int64(request.node.node_id)
    with state.session() as session:
        if not session.scalar(select(exists().where(MessageIns.message_id.in_(select(above.c.object_id)), mine))):
            raise NotAllowedError("a part of no message to it")


def _received(request: ConfirmMessageReceivedRequest, state: SqlLinkState) -> None:
    name, node = request.message_object_id, uint64_to_int64(request.node.node_id)
    _name(name)
    to_another = exists().where(MessageIns.message_id == name, MessageIns.dst_node_id != node)
    of_another = exists().where(MessageRes.message_id == name, MessageRes.src_node_id != node)
    with state.session() as session:
        if session.scalar(select(or_(to_another, of_another))):
            raise NotAllowedError("a message that is not to it")


def _bundle(request: GetFabRequest, state: SqlLinkState) -> None:
    del state
    _name(request.hash_str)


def _name(text: str) -> None:
    """A name goes into logs and comes back in answers, so it must be one, whether or not it is known."""
    if not _NAME.match(text):
        raise NotAllowedError("a name that is none")


def _first(tree: ObjectTree, most: int) -> Iterator[ObjectTree]:
    for number, part in enumerate(iterate_object_tree(tree)):
        if number >= most:
            raise NotAllowedError(f"a message of more than {most} parts")
        yield part


_CHECKS: dict[type[Message], Callable[[Any, SqlLinkState], None]] = {
    PushMessagesRequest: _reply,
    PushObjectRequest: _part_up,
    PullObjectRequest: _part_down,
    ConfirmMessageReceivedRequest: _received,
    PushedObject: _part_up,
    GetFabRequest: _bundle,
}
