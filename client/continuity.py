"""What lets a killed SuperNode be followed by another at once, without the server waiting in vain.

SuperNode keeps everything in memory. Killed, it leaves the server with a message that nobody will ever answer, and with
the belief that the site is still there, for which reason the server refuses the site's key for about a minute. A
message whose content cannot be fetched is dropped without an answer, too. So two things are noted in files: the number
of the node that is connected, and the message that was received and not yet answered with all pieces of a reply. The
next connection first signs the dead node off, and whatever was not answered is answered with a code.

SuperNode also announces a reply to the server before it has all of it from the runner; killed in between, the runner
would leave the server with half a reply. Here a reply is announced when it is whole, and given up when the rest does
not come. And SuperNode takes the next best reply for the one to the message that it received last, but a runner that
was still at a message of a run that ended replies late; here SuperNode then goes on waiting. Written for exactly one
version of Flower (``common.flower``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import message_pb2
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.approvals import AUDIT_FILE
from client.uplink import PushObject, Send, Upload
from common.audit import AuditLog
from common.errors import FedvoxError
from common.messages import ErrorCode

log = logging.getLogger("fedvox.supernode")

Keys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]
Callbacks = tuple[Any, ...]
Connect = Callable[..., AbstractContextManager[Callbacks]]
REASON = "Restarted"
SHORTEST_PAUSE_SECONDS = 0.01
REST_SECONDS = 15.0
"""So long a reply may be without a further piece from the runner."""


class IncompleteReplyError(FedvoxError):
    """The rest of a reply does not come."""


class RunEndedError(FedvoxError):
    """The run of a message is over."""


class Continuity:
    """Stands around Flower's connection to the server.

    Args:
        state: the site's state folder.

    Attributes:
        received: name of the message that came last.
    """

    def __init__(self, state: Path) -> None:
        self.received: str | None = None
        self._node = state / "supernode-id"
        self._message = state / "supernode-message"
        self._audit = AuditLog(state / AUDIT_FILE)

    def around(self, connect: Connect) -> Connect:
        """A replacement for ``flwr.supernode.fleet_http_connection.http_request_response``."""

        @contextmanager
        def connected(
            address: str, insecure: bool, authority: bytes | str | None, keys: Keys | None, *options: Any
        ) -> Iterator[Callbacks]:
            if keys is not None:
                self._sign_off(address, insecure, authority, keys)
            with connect(address, insecure, authority, keys, *options) as callbacks:
                self._node.write_text(str(callbacks[0]), encoding="utf-8")
                yield self._noting(callbacks)
            self._node.unlink(missing_ok=True)

        return connected

    def _sign_off(self, address: str, insecure: bool, authority: bytes | str | None, keys: Keys) -> None:
        """Tells the server that the node of an earlier process is gone."""
        try:
            node = int(self._node.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        proof = NodeAuthHttpInterceptor(*keys)
        version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
        with FleetHttpClient.from_server_address(address, insecure, authority, [version, proof]) as client:
            try:
                client.DeactivateNode(DeactivateNodeRequest(node_id=node))
                log.warning("signed off the node of an earlier process")
            except httpx.HTTPError as error:
                log.warning("could not sign off the node of an earlier process: %s", type(error).__name__)

    def _noting(self, callbacks: Callbacks) -> Callbacks:
        node, receive, send, get_run, get_fab, pull_object, push_object, confirm = callbacks

        def receive_and_note() -> Any:
            # SuperNode asks for the next message only when it is done with the last one, whatever became of it.
            self._answer_lost(send, push_object)
            received = receive()
            if received is not None:
                with lock:
                    missing.clear()
                self.received = received[0].metadata.message_id
                self._message.write_bytes(message_to_proto(received[0]).SerializeToString())
            return received

        # Of the reply to it, when it is announced: session -> pieces.
        missing: dict[str, set[str]] = {}
        lock = threading.Lock()

        def send_and_note(message: Message, tree: ObjectTree, seconds: float) -> Any:
            # Flower would also send how long the runner took, which is on no list of what leaves.
            del seconds
            wanted, session = send(message, tree, 0.0)
            if message.metadata.reply_to_message_id == self.received:
                with lock:
                    missing[session] = set(wanted)
                    self._forget_if_done(missing[session])
            return wanted, session

        def push_and_note(run_id: int, session: str, identity: str, content: bytes) -> None:
            push_object(run_id, session, identity, content)
            with lock:
                if session in missing:
                    missing[session].discard(identity)
                    self._forget_if_done(missing[session])

        return (
            node,
            receive_and_note,
            send_and_note,
            get_run,
            get_fab,
            _fails_with_the_run(pull_object),
            push_and_note,
            _fails_with_the_run(confirm),
        )

    def _forget_if_done(self, missing: set[str]) -> None:
        # An announced reply that lacks a piece is no answer: after a crash its message is answered with a code.
        if not missing:
            self._message.unlink(missing_ok=True)

    def _answer_lost(self, send: Callable[..., Any], push_object: Callable[..., Any]) -> None:
        try:
            message = message_from_proto(message_pb2.Message.FromString(self._message.read_bytes()))
        except FileNotFoundError:
            return
        except Exception as error:
            log.warning("the note of the open message is damaged: %s", type(error).__name__)
            self._message.unlink(missing_ok=True)
            return
        try:
            reply = Message(Error(code=ErrorCode.TASK_LOST, reason=REASON), reply_to=message)
            # What cannot be written down does not leave.
            self._audit.append("sent", kind=message.metadata.message_type, bytes=0, error="task-lost", reason=REASON)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            wanted, session = send(reply, get_object_tree(reply), 0.0)
            for identity, item in get_all_nested_objects(reply).items():
                if identity in wanted:
                    push_object(message.metadata.run_id, session, identity, item.deflate())
            log.warning("told the server that a message was lost")
        except (Exception, RunNotRunningException) as error:  # Flower's is no Exception
            # The run may be over, or the message answered before the process was killed.
            log.warning("could not say that a message was lost: %s", type(error).__name__)
        self._message.unlink(missing_ok=True)


def _fails_with_the_run(call: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a call fail like any other when the run ended meanwhile.

    Flower's own exception is none that SuperNode cleans up after: the runner would wait for ever for the rest of a
    message that nobody downloads any more, and every later task with it.
    """

    def wrapped(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RunNotRunningException:
            raise RunEndedError("the run ended while its message was downloaded") from None

    return wrapped


def whole_replies_only(push_messages: Callable[..., None], continuity: Continuity) -> Callable[..., None]:
    """A replacement for ``flwr.supernode.start_client_internal._push_messages``.

    Args:
        push_messages: Flower's, which returns when it has sent a reply, whichever.
        continuity: knows which message is to be replied to.
    """

    def push(*, state: Any, object_store: ObjectStore, send: Send, push_object: PushObject) -> None:
        uploads: dict[str, Upload] = {}
        replied_to: set[str] = set()

        def send_whole(message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
            replied_to.add(message.metadata.reply_to_message_id)
            wait_until_whole(object_store, tree)
            wanted, session = send(message, tree, seconds)
            uploads[session] = Upload(message, tree, wanted, object_store, send, push_object)
            return wanted, session

        def push_piece(run_id: int, session: str, identity: str, content: bytes) -> None:
            uploads[session].push(run_id, session, identity, content)

        while True:
            push_messages(state=state, object_store=object_store, send=send_whole, push_object=push_piece)
            if not replied_to or continuity.received is None or continuity.received in replied_to:
                return
            log.warning("that was a late reply to an earlier message; waiting for the one to the last")

    return push


def wait_until_whole(store: ObjectStore, tree: ObjectTree, patience: float = REST_SECONDS) -> None:
    """Waits until the store has every object of a message.

    Raises:
        IncompleteReplyError: for ``patience`` seconds no further object came.
    """
    missing = {item.object_id for item in iterate_object_tree(tree)}
    moved = time.monotonic()
    while True:
        # Empty: announced, and not there yet.
        came = {identity for identity in missing if store.get(identity)}
        missing -= came
        if not missing:
            return
        if came:
            moved = time.monotonic()
        elif time.monotonic() - moved > patience:
            raise IncompleteReplyError(f"{len(missing)} pieces of the reply did not come from the runner")
        time.sleep(SHORTEST_PAUSE_SECONDS)
