"""The server app's own door to SuperLink's state.

SuperLink and the server app run on one machine, for one account, and whoever has one of them has the other. Flower lets
them speak over TLS nevertheless: every piece of a model is encrypted, sent, parsed and copied again, and half of
SuperLink's time goes into that. Here the app calls what answers such a request, on the same database. Its task must
still be alive, as before; that is looked up for every call, but for pieces half a second at most after the last time.
Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import threading
import time
from typing import Any

from flwr.proto import message_pb2, runtime_pb2
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.state.schema.linkstate_models import MessageRes
from flwr.superlink.grid import http_grid
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers
from sqlalchemy import exists, select
from sqlalchemy.exc import OperationalError

from common.errors import FedvoxError
from common.large_objects import PulledObject
from common.parts import push, put_together
from server.leftovers import remove_leftovers
from server.object_files import FileObjectStore

TIDY_SECONDS = 60.0
ASK_SECONDS = 1.0
TASK_SECONDS = 0.5


class TaskEndedError(FedvoxError):
    """The app's task is no longer one: its run was stopped, or another process took its place."""


class DirectClient:
    """Stands in for the connection of Flower's ``HttpGrid``.

    Args:
        state: of SuperLink.
        token: of the app's task.
        other: the connection, for what is not answered here.
    """

    def __init__(self, state: SqlLinkState, token: str, other: Any) -> None:
        self._state = state
        self._token = token
        self._other = other
        # Of each thread, for one may wait for a reply while another takes the next.
        self._unconfirmed: dict[int, set[str]] = {}
        self._lock = threading.Lock()
        self._tidied = float("-inf")
        self._asked: dict[tuple[str, ...], float] = {}
        self._known_task: tuple[Task, float] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)

    def GetNodes(self, request: runtime_pb2.GetNodesRequest) -> runtime_pb2.GetNodesResponse:  # noqa: N802 -- Flower's
        """The nodes that are online."""
        return runtime_handlers.get_nodes(request, self._state, self._task())

    def PushMessages(  # noqa: N802
        self, request: runtime_pb2.PushAppMessagesRequest
    ) -> runtime_pb2.PushAppMessagesResponse:
        """Announces messages."""
        return runtime_handlers.push_messages(request, self._state, self._task())

    def PullMessages(  # noqa: N802
        self, request: runtime_pb2.PullAppMessagesRequest
    ) -> runtime_pb2.PullAppMessagesResponse:
        """Replies that are there. What this thread got before and did not confirm was given up, and is removed."""
        task, thread = self._task(), threading.get_ident()
        with self._lock:
            self._tidy(self._unconfirmed.pop(thread, set()))
            if not self._may_be_there(tuple(request.message_ids)):
                return runtime_pb2.PullAppMessagesResponse()
            answer = runtime_handlers.pull_messages(request, self._state, task)
            self._unconfirmed[thread] = {message.metadata.message_id for message in answer.messages_list}
        return answer

    def PushObject(self, request: message_pb2.PushObjectRequest) -> message_pb2.PushObjectResponse:  # noqa: N802
        """Stores a part of a message, which this process has named (``common.parts``)."""
        files = self._state.object_store
        if isinstance(files, FileObjectStore):
            files.stage(request.object_id, request.object_content, checked=True)
        try:
            return runtime_handlers.push_object(request, self._state, self._recent_task())
        finally:
            if isinstance(files, FileObjectStore):
                files.unstage()

    def PullObject(self, request: message_pb2.PullObjectRequest) -> PulledObject:  # noqa: N802
        """A part of a reply."""
        task = self._recent_task()
        content = self._state.get_object(task.run_id, request.object_id)
        return PulledObject(content is not None, bool(content), content)

    def ConfirmMessageReceived(  # noqa: N802
        self, request: message_pb2.ConfirmMessageReceivedRequest
    ) -> message_pb2.ConfirmMessageReceivedResponse:
        """Lets SuperLink forget a reply."""
        with self._lock:
            self._unconfirmed.get(threading.get_ident(), set()).discard(request.message_object_id)
        return runtime_handlers.confirm_message_received(request, self._state, self._task())

    def _may_be_there(self, messages: tuple[str, ...]) -> bool:
        """Whether a reply was announced. Once a second it may in any case: Flower also tells of what will not come."""
        now = time.monotonic()
        self._asked = {asked: at for asked, at in self._asked.items() if now - at < ASK_SECONDS}
        if messages not in self._asked:
            self._asked[messages] = now
            return True
        with self._state.session() as session:
            return bool(session.scalar(select(exists().where(MessageRes.reply_to_message_id.in_(messages)))))

    def _tidy(self, given_up: set[str]) -> None:
        try:
            for message in given_up:
                self._state.object_store.delete(message)
            if time.monotonic() - self._tidied >= TIDY_SECONDS:
                self._tidied = time.monotonic()
                remove_leftovers(self._state, set().union(*self._unconfirmed.values()))
        except OperationalError:
            pass  # the database is busy; what is left over now is removed a minute later

    def _task(self) -> Task:
        task = self._state.get_task_by_token(self._token)
        if task is None:
            raise TaskEndedError("this run was stopped")
        self._known_task = task, time.monotonic()
        return task

    def _recent_task(self) -> Task:
        known = self._known_task
        return known[0] if known and time.monotonic() - known[1] < TASK_SECONDS else self._task()


def connect_directly(grid: HttpGrid, state: SqlLinkState) -> None:
    """Lets a grid of Flower's use SuperLink's state; who uses its connection already keeps it."""
    client = DirectClient(state, grid._token, grid._runtime_client)
    grid._client = client  # type: ignore[assignment]

    http_grid.inflate_object_from_contents = put_together  # type: ignore[assignment,attr-defined]
    # As Flower's, but for hashing pieces that have their names.
    grid._try_push_messages = lambda run_id, messages: push(client, messages, grid.node, run_id)  # type: ignore[method-assign]
