"""The site as a Flower node: its calls, made with Flower's own client."""

from __future__ import annotations

import contextlib
import hashlib
import http
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

from client.courier.connection import LARGEST_WORD_BYTES, Access, one_line
from client.courier.errors import LineError, RefusedError
from client.courier.flower_messages import Arrival, PackedReply
from client.courier.mailbox import read_kept, write_kept
from client.flower import (
    ActivateNodeRequest,
    ConfirmMessageReceivedRequest,
    DeactivateNodeRequest,
    FleetHttpClient,
    MessageHeader,
    Node,
    NodeAuthHttpInterceptor,
    ObjectTree,
    ProtobufCall,
    ProtobufClientInterceptor,
    ProtobufRequestContext,
    PullMessagesRequest,
    PullObjectRequest,
    PushMessagesRequest,
    PushObjectRequest,
    RuntimeVersionHttpInterceptor,
    SendNodeHeartbeatRequest,
)
from common.certificates import public_pem
from common.system.direct_calls import DirectCalls

HEARTBEAT_SECONDS = 25.0
"""Interval of Flower's heartbeat; Flower considers a node online for twice ``_INTERVAL_SECONDS``."""
_INTERVAL_SECONDS = 30.0
HOLD_SECONDS = 20
"""How long the server may hold a long poll for messages."""


class FleetNode:
    """A Flower node. Thread-safe.

    All methods raise ``LineError`` if no answer arrives and ``RefusedError`` if the server refuses.

    Parameters
    ----------
    access
        Access to the gateway.
    note
        File for the node's ID, so that a killed node can be signed off later.
    """

    def __init__(self, access: Access, note: Path) -> None:
        self._access = access
        self._note = note
        self._lock = threading.Lock()
        self._node = Node()
        key = access.key
        proxy = access.address.proxy
        self._calls = DirectCalls(access.context, proxy.url if proxy else None)
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
            _SignedRequests(access),
            self._calls,
        ]
        self._client = FleetHttpClient(f"https://{access.address}", interceptors=interceptors, verify=access.context)

    @property
    def number(self) -> int:
        """Flower's ID of the node; 0 before it is active."""
        with self._lock:
            return int(self._node.node_id)

    def activate(self) -> None:
        """Sign the node on, after signing off one left by a killed process: Flower refuses a second.

        Raises
        ------
        OutputError
            If its ID cannot be stored.
        """
        self._sign_off_previous()
        pem = public_pem(self._access.key.public_key())
        with self._translated_errors("signing on"):
            answer = self._client.ActivateNode(
                ActivateNodeRequest(public_key=pem, heartbeat_interval=_INTERVAL_SECONDS)
            )
        write_kept(self._note, {"node": answer.node_id})
        with self._lock:
            self._node = Node(node_id=answer.node_id)

    def deactivate(self) -> None:
        """Sign the node off."""
        if number := self.number:
            with self._translated_errors("signing off"):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=number))

    def heartbeat(self) -> None:
        """Send Flower's heartbeat."""
        request = SendNodeHeartbeatRequest(node=self._current_node(), heartbeat_interval=_INTERVAL_SECONDS)
        with self._translated_errors("Flower's heartbeat"):
            self._client.SendNodeHeartbeat(request)

    def pull(self) -> Arrival | None:
        """Return the next message, or None if none arrives within ``HOLD_SECONDS``."""
        with self._translated_errors("asking for messages"):
            answer = self._client.PullMessages(PullMessagesRequest(node=self._current_node()))
        if not answer.messages_list:
            return None
        if len(answer.message_object_trees) != len(answer.messages_list):
            raise LineError("asking for messages: the server's answer is incomplete")
        header = answer.messages_list[0].SerializeToString(deterministic=True)
        return Arrival(header, answer.message_object_trees[0])

    def fetch(self, arrival: Arrival, identity: str) -> bytes:
        """Fetch one object of a message."""
        request = PullObjectRequest(node=self._current_node(), run_id=arrival.run, object_id=identity)
        with self._translated_errors("fetching a message"):
            answer = self._client.PullObject(request)
        if not answer.object_found:
            raise RefusedError("fetching a message", 404, "no such object")
        if not answer.object_available:
            raise RefusedError("fetching a message", http.HTTPStatus.TOO_EARLY, "not complete yet")
        return bytes(answer.object_content)

    def confirm(self, header: bytes) -> None:
        """Confirm that a message was received and stored."""
        metadata = MessageHeader.FromString(header).metadata
        request = ConfirmMessageReceivedRequest(
            node=self._current_node(), run_id=metadata.run_id, message_object_id=metadata.message_id
        )
        with self._translated_errors("confirming a message"):
            self._client.ConfirmMessageReceived(request)

    def announce(self, reply: PackedReply) -> None:
        """Announce a reply and send the objects that the server lacks; safe to repeat."""
        request = PushMessagesRequest(
            node=self._current_node(),
            messages_list=[MessageHeader.FromString(reply.header)],
            message_object_trees=[ObjectTree.FromString(reply.tree)],
        )
        with self._translated_errors("announcing a reply"):
            answer = self._client.PushMessages(request)
        for identity in answer.objects_to_push:
            if identity not in reply.objects:
                raise LineError("announcing a reply: the server asks for an object that is not part of it")
            piece = PushObjectRequest(
                node=self._current_node(),
                run_id=reply.run,
                session_id=answer.session_id,
                object_id=identity,
                object_content=reply.objects[identity],
            )
            with self._translated_errors("sending a reply"):
                stored = self._client.PushObject(piece).stored
            if not stored:
                raise LineError("sending a reply: the server did not store it")

    def close(self) -> None:
        """Close all connections."""
        self._calls.close()
        self._client.close()

    def _current_node(self) -> Node:
        with self._lock:
            return self._node

    def _sign_off_previous(self) -> None:
        kept = read_kept(self._note, "it is put aside; the server may let this site in a minute late")
        if kept is None:
            return
        # A refusal means that the node is not signed on or no longer known; both are fine.
        with contextlib.suppress(RefusedError), self._translated_errors("signing off"):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=kept["node"]))

    @contextlib.contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        with self._access.translated():
            try:
                yield
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                word = one_line(error.response.content[:LARGEST_WORD_BYTES])
                if 400 <= status < 500:
                    raise RefusedError(what, status, word) from None
                followed = ", a redirect, which no site follows" if error.response.has_redirect_location else ""
                raise LineError(f"{what}: the server answers {status}{followed}") from None
            except ValueError as error:
                if isinstance(error, OSError):  # an invalid certificate raises an error that is both
                    raise
                raise LineError(f"{what}: the server's answer cannot be read") from None


class _SignedRequests:
    """Signs each call with the site's key, and requests long polling for messages."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign the call and report the response as contact."""
        request = context.request
        path, body = request.url.raw_path.decode(), hashlib.sha256(request.content).hexdigest()
        request.headers.update(self._access.headers(request.method, path, body, dict(request.headers)))
        if context.rpc_method.endswith("PullMessages"):
            request.headers["prefer"] = f"wait={HOLD_SECONDS}"
        response = call_next(context)
        self._access.note(response.status_code)
        return response
