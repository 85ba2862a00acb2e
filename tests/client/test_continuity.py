"""What is noted around SuperNode's connection; with real processes it is tested in tests/e2e/test_site.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

from client.approvals import AUDIT_FILE
from client.continuity import (
    Continuity,
    IncompleteReplyError,
    RunEndedError,
    wait_until_whole,
    whole_replies_only,
)
from common.audit import read_entries
from common.messages import ErrorCode


class Server:
    """The server's end of a connection: hands out messages, and keeps what it gets."""

    def __init__(self, *messages: Message) -> None:
        self.waiting = list(messages)
        self.got: list[tuple[int, str]] = []
        self.seconds: list[float] = []
        self.broken = False
        self.wanted: set[str] = set()
        self.pull: Callable[..., None] = lambda *_: None
        self.confirm: Callable[..., None] = lambda *_: None

    @contextmanager
    def connect(self, *_: Any) -> Iterator[tuple[Any, ...]]:
        nothing = lambda *_: None  # noqa: E731
        yield 7, self.receive, self.send, nothing, nothing, self.pull, self.push, self.confirm

    def receive(self) -> tuple[Message, None] | None:
        return (self.waiting.pop(0), None) if self.waiting else None

    def send(self, message: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
        if self.broken:
            raise ConnectionError
        code = message.error.code if message.has_error() else 0
        self.seconds.append(seconds)
        self.got.append((code, message.metadata.reply_to_message_id))
        return set(self.wanted), "session"

    def push(self, run_id: int, session: str, identity: str, content: bytes) -> None:
        if self.broken:
            raise ConnectionError


def message(identity: str) -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    made = Message(RecordDict({"do": ConfigRecord({"what": "work"})}), 7, "train")
    made.metadata.__dict__["_message_id"] = identity
    return remove_content_from_message(made)


def connected(state: Path, server: Server) -> Any:
    return Continuity(state).around(server.connect)("address", True, None, None)


def test_an_answered_message_is_forgotten(tmp_path: Path) -> None:
    server = Server(message("a" * 64))
    with connected(tmp_path, server) as (_, receive, send, *_rest):
        received, _ = receive()
        reply = Message(RecordDict(), reply_to=received)
        send(reply, get_object_tree(reply), 1.0)
        assert receive() is None
    assert server.got == [(0, "a" * 64)]
    assert server.seconds == [0], "how long it took is on no list of what leaves"
    assert not list(tmp_path.glob("supernode-*"))


@pytest.mark.parametrize("pushed", [0, 1, 2])
def test_a_reply_is_an_answer_when_its_last_piece_was_sent(tmp_path: Path, pushed: int) -> None:
    server = Server(message("a" * 64))
    server.wanted = {"x", "y"}
    with connected(tmp_path, server) as (_, receive, send, _run, _fab, _pull, push, _confirm):
        reply = Message(RecordDict(), reply_to=receive()[0])
        _, session = send(reply, get_object_tree(reply), 1.0)
        for identity in ("x", "y")[:pushed]:
            push(1, session, identity, b"content")
        server.broken = True
        if pushed < 2:
            with pytest.raises(ConnectionError):
                push(1, session, "y", b"content")
    restarted = Server()
    with connected(tmp_path, restarted) as (_, receive, *_rest):
        receive()
    assert restarted.got == ([] if pushed == 2 else [(ErrorCode.TASK_LOST, "a" * 64)])


def test_what_was_received_before_a_crash_is_answered_with_a_code_and_written_down(tmp_path: Path) -> None:
    with connected(tmp_path, Server(message("a" * 64))) as (_, receive, *_rest):
        receive()
    server = Server()
    with connected(tmp_path, server) as (_, receive, *_rest):
        assert receive() is None
        assert receive() is None
    assert server.got == [(ErrorCode.TASK_LOST, "a" * 64)], "once"
    assert [(entry.event, entry.details["error"]) for entry in read_entries(tmp_path / AUDIT_FILE)] == [
        ("sent", "task-lost")
    ]


def test_a_message_that_supernode_dropped_is_answered_before_the_next_one(tmp_path: Path) -> None:
    server = Server(message("a" * 64), message("b" * 64))
    with connected(tmp_path, server) as (_, receive, *_rest):
        receive()
        assert receive()[0].metadata.message_id == "b" * 64
    assert server.got == [(ErrorCode.TASK_LOST, "a" * 64)]


def test_an_answer_that_fails_does_not_stop_the_site(tmp_path: Path) -> None:
    server = Server(message("a" * 64), message("b" * 64))
    with connected(tmp_path, server) as (_, receive, *_rest):
        receive()
        server.broken = True
        assert receive()[0].metadata.message_id == "b" * 64


def test_a_message_of_a_run_that_is_over_is_forgotten(tmp_path: Path) -> None:
    with connected(tmp_path, Server(message("a" * 64))) as (_, receive, *_rest):
        receive()
    server = Server(message("b" * 64))

    def refuse(*_: Any) -> None:
        raise RunNotRunningException

    server.send = refuse  # type: ignore[assignment]
    with connected(tmp_path, server) as (_, receive, *_rest):
        assert receive() is not None, "the next run's message"


def test_a_download_that_ends_with_its_run_fails_like_any_other(tmp_path: Path) -> None:
    server = Server(message("a" * 64))

    def refuse(*_: Any) -> None:
        raise RunNotRunningException

    server.pull = server.confirm = refuse
    with connected(tmp_path, server) as (_, receive, _send, _run, _fab, pull, _push, confirm):
        receive()
        for call, arguments in ((pull, (1, "x")), (confirm, (1, "a" * 64))):
            # An ``Exception``, which Flower's is not: only after one does SuperNode drop message and task.
            with pytest.raises(RunEndedError):
                call(*arguments)


def test_a_damaged_note_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "supernode-message").write_bytes(b"\xff\xff\xff")
    server = Server()
    with connected(tmp_path, server) as (_, receive, *_rest):
        assert receive() is None
    assert server.got == [] and not (tmp_path / "supernode-message").exists()


def test_the_note_of_a_connected_node_stays_only_if_the_process_died(tmp_path: Path) -> None:
    with connected(tmp_path, Server()):
        assert (tmp_path / "supernode-id").read_text() == "7"
    assert not (tmp_path / "supernode-id").exists()


def test_a_late_reply_to_an_earlier_message_is_no_answer_to_the_last(tmp_path: Path) -> None:
    server = Server(message("b" * 64))
    server.wanted = {"x"}
    with connected(tmp_path, server) as (_, receive, send, _run, _fab, _pull, push, _confirm):
        receive()
        late = Message(RecordDict(), reply_to=message("a" * 64))
        _, session = send(late, get_object_tree(late), 1.0)
        push(1, session, "x", b"content")
    restarted = Server()
    with connected(tmp_path, restarted) as (_, receive, *_rest):
        receive()
    assert restarted.got == [(ErrorCode.TASK_LOST, "b" * 64)]


@pytest.mark.parametrize("over", [True, False])
def test_after_a_late_reply_supernode_waits_for_the_one_to_the_last_message(tmp_path: Path, over: bool) -> None:
    server, sent = Server(message("b" * 64)), []
    server.wanted = {"x"}
    store = ObjectStoreFactory().store()
    replies = [Message(RecordDict(), reply_to=message(identity * 64)) for identity in "ab"]
    for reply in replies:
        store.preregister(1, get_object_tree(reply))
        for identity, item in get_all_nested_objects(reply).items():
            store.put(identity, item.deflate())

    def flowers(*, state: Any, object_store: Any, send: Any, push_object: Any) -> None:
        reply = replies.pop(0)
        sent.append(reply.metadata.reply_to_message_id[0])
        try:
            _, session = send(reply, get_object_tree(reply), 0.0)
        except RunNotRunningException:
            return  # as Flower's
        push_object(1, session, "x", b"content")

    def send_unless_over(reply: Message, tree: Any, seconds: float) -> Any:
        if over and len(sent) == 1:
            raise RunNotRunningException
        return Server.send(server, reply, tree, seconds)

    server.send = send_unless_over  # type: ignore[method-assign]
    continuity = Continuity(tmp_path)
    with continuity.around(server.connect)("address", True, None, None) as callbacks:
        _, receive, send, _run, _fab, _pull, push, _confirm = callbacks
        receive()
        whole_replies_only(flowers, continuity)(state=None, object_store=store, send=send, push_object=push)
        assert sent == ["a", "b"]
        assert receive() is None
    assert [to[0] for _, to in server.got] == (["b"] if over else ["a", "b"])
    assert not (tmp_path / "supernode-message").exists()


def test_a_reply_is_whole_when_its_last_piece_is_there() -> None:
    reply = Message(RecordDict({"x": ConfigRecord({"a": 1}), "y": ConfigRecord({"b": 2})}), reply_to=message("a" * 64))
    store, objects = ObjectStoreFactory().store(), get_all_nested_objects(reply)
    tree = get_object_tree(reply)
    store.preregister(1, tree)
    with pytest.raises(IncompleteReplyError, match=f"{len(objects)} pieces"):
        wait_until_whole(store, tree, patience=0.02)
    for identity, item in list(objects.items())[1:]:
        store.put(identity, item.deflate())
    with pytest.raises(IncompleteReplyError, match="1 pieces"):
        wait_until_whole(store, tree, patience=0.02)
    waiting = threading.Thread(target=wait_until_whole, args=(store, tree, 10))
    waiting.start()
    identity, item = next(iter(objects.items()))
    store.put(identity, item.deflate())
    waiting.join(5)
    assert not waiting.is_alive()
