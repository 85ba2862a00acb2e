"""Authorises Fleet calls, beyond what Flower itself checks.

Flower checks that a Fleet call comes from the node that it names, and trusts the rest. A site could reply as another
node, push a message in the server's name, take over another node's announcement, fetch or delete the objects of any
message whose ID it knows, or overload the database with a long list of objects. These rules confine a site to its own
node, to the messages delivered to it, and to the objects of those messages and of its replies.

| call | requirement |
| --- | --- |
| all | names the node that the server registered for the site |
| ``activate-node`` | carries the site's own public key |
| ``push-messages`` | announces one reply with its objects, from this node to the server, to a message it received |
| ``push-object`` | sends an object of a reply that this node has announced |
| ``pull-object``, ``confirm-message-received`` | concerns a message delivered to this node |
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.flower import (
    NODE_KEY_HEADER,
    SUPERLINK_NODE_ID,
    ActivateNodeRequest,
    ConfirmMessageReceivedRequest,
    DeactivateNodeRequest,
    ObjectTree,
    ProtobufError,
    PullMessagesRequest,
    PullObjectRequest,
    PushMessagesRequest,
    PushObjectRequest,
    SendNodeHeartbeatRequest,
)
from server.gateway.fleet.announcements import Announcements
from server.gateway.identity import Site
from server.gateway.refusals import RefusedError
from server.run_store.gateway_folder import GatewayFolder, HandedOut
from server.run_store.locks import registered_names

MOST_OBJECTS = 64
"""The most objects of a reply; ours has three."""
LARGEST_HEADER = 16 * 1024
"""The most bytes of a reply without its objects: addresses, and for an error its code and reason."""
LARGEST_INDEX = 20_000
"""The most objects in the index before it is rebuilt from the folder, which drops deleted messages."""
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_REQUESTS: Mapping[str, Any] = {
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "pull-messages": PullMessagesRequest,
    "push-messages": PushMessagesRequest,
    "push-object": PushObjectRequest,
    "pull-object": PullObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
}
METHODS = frozenset(_REQUESTS)
"""The Fleet calls that a site needs; no other reaches SuperLink."""


@dataclass(frozen=True)
class FleetCall:
    """An authorised call.

    Attributes
    ----------
    request
        The protobuf message.
    node
        The calling node; 0 for ``activate-node``.
    content
        The bytes for SuperLink, serialised from ``request`` without unknown fields.
    """

    method: str
    node: int
    request: Any
    content: bytes


class FleetRules:
    """Authorises Fleet calls. Not thread-safe.

    Parameters
    ----------
    folder
        The gateway's folder; ``nodes.json`` is in the run folder above it.
    announcements
        The replies that sites have announced.
    """

    def __init__(self, folder: GatewayFolder, announcements: Announcements) -> None:
        self._folder = folder
        self._announcements = announcements
        self._messages: dict[tuple[int, str], set[str]] = {}
        self._largest = LARGEST_INDEX

    def admit(self, site: Site, method: str, headers: Mapping[str, str], body: bytes) -> FleetCall:
        """Authorise a call and return it. Reads small files.

        Parameters
        ----------
        site
            The site that signed the request.
        method
            One of ``METHODS``.
        headers
            The request's headers.
        body
            The request's body.

        Raises
        ------
        RefusedError
            The site may not make this call.
        """
        if _decoded(headers.get(NODE_KEY_HEADER, "")) != site.public_key:
            raise RefusedError(403, "public-key")
        try:
            request = _REQUESTS[method].FromString(body)
        except ProtobufError:
            raise RefusedError(400, "malformed") from None
        request.DiscardUnknownFields()
        if isinstance(request, ActivateNodeRequest):
            if request.public_key != site.public_key:
                raise RefusedError(403, "public-key")
            node = 0
        else:
            node = int(request.node_id if isinstance(request, DeactivateNodeRequest) else request.node.node_id)
            self._check_node(site, node)
        self._check_content(node, request)
        return FleetCall(method, node, request, request.SerializeToString())

    def note_handed_out(self, node: int, header: Any, tree: ObjectTree) -> None:
        """Record a message before it is delivered to a node."""
        message, run = str(header.metadata.message_id), int(header.metadata.run_id)
        found = HandedOut(node, run, tuple(objects_of(tree)))
        self._folder.note_handed_out(message, found.node, found.run, found.objects)
        self._index(message, found)

    def _check_node(self, site: Site, node: int) -> None:
        names = registered_names(self._folder.run)
        if not names:
            raise RefusedError(503, "not-ready")
        if names.get(node) != site.name:
            raise RefusedError(403, "node")

    def _check_content(self, node: int, request: Any) -> None:
        if isinstance(request, PushMessagesRequest):
            self._check_reply(node, request)
        elif isinstance(request, PushObjectRequest):
            _check_identity(request.object_id)
            if not self._announcements.includes(node, request.session_id, request.object_id):
                # Announcements are lost on a restart; the site announces its reply again.
                raise RefusedError(503, "object")
        elif isinstance(request, PullObjectRequest):
            self._check_object(node, request.run_id, request.object_id)
        elif isinstance(request, ConfirmMessageReceivedRequest):
            self._check_handed_out(node, request.run_id, request.message_object_id, "message")

    def _check_reply(self, node: int, request: PushMessagesRequest) -> None:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise RefusedError(403, "not-one-reply")
        [message], [tree] = request.messages_list, request.message_object_trees
        about = message.metadata
        if about.src_node_id != node or about.dst_node_id != SUPERLINK_NODE_ID:
            raise RefusedError(403, "node")
        if message.ByteSize() > LARGEST_HEADER or request.clientapp_runtime_list:
            raise RefusedError(403, "header")
        self._check_handed_out(node, about.run_id, about.reply_to_message_id, "message")
        if about.message_id != tree.object_id:
            raise RefusedError(403, "object")
        for identity in objects_of(tree):
            _check_identity(identity)
        if self._folder.handed_out(about.message_id) is not None:
            # Announcing a message again would abort the push of the node that announced it first.
            raise RefusedError(403, "message")

    def _check_handed_out(self, node: int, run: int, message: str, reason: str) -> None:
        """Check that a message was delivered to this node, and belongs to this run."""
        _check_identity(message, reason)
        if not self._is_handed_out(node, run, message):
            raise RefusedError(403, reason)

    def _is_handed_out(self, node: int, run: int, message: str) -> bool:
        found = self._folder.handed_out(message)
        return found is not None and (found.node, found.run) == (node, run)

    def _check_object(self, node: int, run: int, identity: str) -> None:
        """Check that an object belongs to such a message; messages with equal content share objects."""
        _check_identity(identity)
        if (node, identity) not in self._messages or len(self._messages) > self._largest:
            self._messages.clear()
            for message, found in self._folder.all_handed_out().items():
                self._index(message, found)
            self._largest = max(LARGEST_INDEX, 2 * len(self._messages))
        messages = self._messages.get((node, identity), set())
        if not any(self._is_handed_out(node, run, message) for message in messages):
            raise RefusedError(403, "object")

    def _index(self, message: str, found: HandedOut) -> None:
        for identity in found.objects:
            self._messages.setdefault((found.node, identity), set()).add(message)


def objects_of(tree: ObjectTree) -> list[str]:
    """Return the IDs of all objects of a message.

    Raises
    ------
    RefusedError
        There are too many objects.
    """
    found: list[str] = []
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        found.append(str(item.object_id))
        if len(found) > MOST_OBJECTS:
            raise RefusedError(403, "too-many-objects")
        waiting.extend(item.children)
    return found


def _check_identity(text: str, reason: str = "object") -> None:
    if not _IDENTITY.fullmatch(text):
        raise RefusedError(403, reason)


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
