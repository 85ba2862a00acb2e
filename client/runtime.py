"""The site's end of SuperNode's runtime interface: claim a task, fetch its message, send back the reply.

Written for exactly one version of Flower (``common.flower``). It does by itself what Flower's own worker process does
for a ClientApp, less one thing: the app bundle that comes with a task is not unpacked, not installed and not run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto
from flwr.proto import message_pb2
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from common.bulk_http import speed_up
from common.errors import FedvoxError
from common.parts import message_name, push, put_together
from common.pulls import check_contents, pull_patiently

log = logging.getLogger("fedvox.runner")

ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
HEARTBEAT_SECONDS = 5.0
MESSAGE_WAIT_SECONDS = 5.0
MESSAGE_INTERVAL_SECONDS = 0.05
HTTP_FORBIDDEN = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)


class NoMessageError(FedvoxError):
    """A task has no message: SuperNode could not fetch it, or it was fetched before a crash."""


@dataclass(frozen=True)
class Header:
    """A message without its content, and where the content's objects are; what is needed to answer it."""

    message: message_pb2.Message
    tree: message_pb2.ObjectTree


def _connect(address: str, *interceptors: object) -> RuntimeHttpClient:
    # No retry invoker of Flower's: on a 401 it sends SIGINT to its own process.
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # SuperNode and runner talk over the loopback interface only
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],  # type: ignore[list-item]
    )
    speed_up(client, verify=False)
    return client


class TaskSource:
    """Where tasks come from: SuperNode, to whom the shared secret says that we may have them.

    Args:
        address: host:port of SuperNode's runtime interface.
        secret: that SuperNode was started with.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        proof = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({ACQUIRE_METHOD}))
        self._client = _connect(address, proof)

    def acquire(self) -> str | None:
        """The token of the next task, or None if there is none.

        Raises:
            httpx.HTTPError: SuperNode does not answer, or refuses the secret.
        """
        response = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        return response.token if response.HasField("task") and response.token else None


class ClaimedTask:
    """A task that belongs to this process as long as its token is valid; a context manager that keeps it alive.

    Args:
        address: host:port of SuperNode's runtime interface.
        token: of the task.
        on_refused: called in another thread, once, when SuperNode no longer knows the task: the run was stopped, or
            SuperNode was restarted.
    """

    def __init__(self, address: str, token: str, on_refused: Callable[[], None]) -> None:
        self._client = _connect(address, RuntimeTokenHttpInterceptor(token))
        self._heartbeat_client = _connect(address, RuntimeTokenHttpInterceptor(token))
        self._on_refused = on_refused
        self._over = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="task-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._heartbeat.join()
        self._client.close()
        self._heartbeat_client.close()

    def start(self) -> message_pb2.Context:
        """Tells SuperNode that work begins; Flower's context of the run. The app bundle that comes along is dropped."""
        response = self._client.PullTaskInput(PullTaskInputRequest())
        return response.context

    def header(self) -> Header:
        """The task's message, less its content. A message is handed out once.

        Raises:
            NoMessageError: there is none, also after a while: SuperNode makes a task just before it stores the message.
        """
        deadline = time.monotonic() + MESSAGE_WAIT_SECONDS
        while True:
            response = self._client.PullMessages(PullAppMessagesRequest())
            if response.messages_list:
                return Header(response.messages_list[0], response.message_object_trees[0])
            if time.monotonic() > deadline:
                raise NoMessageError("SuperNode has no message for this task")
            time.sleep(MESSAGE_INTERVAL_SECONDS)

    def message(self, header: Header, context: Context) -> Message:
        """The whole message; waits for what SuperNode is still downloading.

        Raises:
            OversizedMessageError: put together it would be larger than what was sent.
        """
        node, root = Node(node_id=context.node_id), header.tree.object_id
        contents = pull_patiently(
            [part.object_id for part in iterate_object_tree(header.tree)],
            make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id),
        )
        make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, context.run_id)(root)
        check_contents(contents)
        message = put_together(root, contents)
        if not isinstance(message, Message):
            raise TypeError("what the server sent is no message")
        # As Flower's own worker does: a message without its identity cannot be replied to.
        message.metadata.__dict__["_message_id"] = root
        return message

    def reply(self, message: Message, context: Context) -> None:
        """Hands a reply to SuperNode, which must come before ``finish``."""
        message.metadata.__dict__["_message_id"] = message_name(message)
        push(self._client, [message], Node(node_id=context.node_id), context.run_id)

    def finish(self, context: Context | None, failure: str = "") -> None:
        """Gives the task back.

        Args:
            context: None leaves SuperNode's as it was.
            failure: name of an exception class; empty if the task was done.
        """
        status = SubStatus.FAILED if failure else SubStatus.COMPLETED
        packed = context_to_proto(context) if context else None
        self._client.PushTaskOutput(PushTaskOutputRequest(context=packed, sub_status=status, details=failure))

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                known = self._heartbeat_client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            except httpx.HTTPStatusError as error:
                known = error.response.status_code not in HTTP_FORBIDDEN
            except httpx.HTTPError:
                continue  # SuperNode is busy or away; a restarted one will say that it does not know the token
            if not known:
                if not self._over.is_set():
                    self._on_refused()
                return


def identity_of(context: message_pb2.Context) -> Context:
    """Flower's context, and for the messages made from now on: that they come from this node and run."""
    # Replies take their addresses from the message that they answer; this is for Flower's own bookkeeping.
    TaskIdentity.run_id, TaskIdentity.node_id = context.run_id, context.node_id
    return context_from_proto(context)


def bare_message(header: Header) -> Message:
    """A message without its content, which is enough to reply to it."""
    return message_from_proto(header.message)
