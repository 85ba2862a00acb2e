"""The server app's calls on a real state of SuperLink's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.schema.corestate_models import ObjectPushSession
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import http_grid
from flwr.superlink.grid.http_grid import HttpGrid
from sqlalchemy import update

from common.pulls import Limits, TooManyObjectsError, replace_pulls
from common.supervise import free_port
from server import direct_client
from server.direct_client import TaskEndedError, connect_directly
from server.light_state import lighten


class State(SqlLinkState):
    """Flower's, so that changes stay in this test."""


lighten(State)


class App:
    """A server app's grid without a SuperLink to answer it, a node, and the run of both."""

    def __init__(self, path: Path) -> None:
        database = str(path / "superlink.db")
        self.state = State(database, NoOpFederationManager(), ObjectStoreFactory(database).store())
        self.state.initialize()
        self.node = self.state.create_node("aid", "north", b"key", 30.0)
        self.state.activate_node(self.node, 30.0)
        self.run = self.state.create_run(None, None, None, {}, "@none/default", None, None, TaskType.SERVER_APP)
        for name, value in {"run_id": self.run, "node_id": 1, "task_id": 1}.items():
            setattr(TaskIdentity, name, value)
        [info] = self.state.get_run_info(run_ids=[self.run])
        self.task = int(info.primary_task_id or 0)
        token = self.state.claim_task(self.task)
        assert token is not None
        assert self.state.activate_task(self.task)
        self.grid = HttpGrid(f"127.0.0.1:{free_port()}", insecure=True, token=token)
        self.grid.set_run(info)
        connect_directly(self.grid, self.state)

    def answer(self, text: str, more: int = 0, lacking: int = 0) -> Message:
        """What the node does with its message; its answer has some records more, and lacks some parts."""
        [asked] = self.state.get_message_ins(self.node, 1)
        records = {str(index): ConfigRecord({"number": index}) for index in range(more)}
        reply = Message(RecordDict({"answer": ConfigRecord({"text": text}), **records}), reply_to=asked)
        reply.metadata.__dict__["_src_node_id"] = self.node
        reply.metadata.__dict__["_message_id"] = reply.object_id
        session = self.state.start_session(self.run)
        _, missing = self.state.store_message_and_object_tree(reply, get_object_tree(reply), session)
        parts = get_all_nested_objects(reply)
        for identity in missing[lacking:]:
            assert self.state.store_object(self.run, session, identity, parts[identity].deflate())
        return reply

    def forget(self, *messages: str) -> None:
        """What Flower does with messages whose time has run out, and with the answers to them."""
        self.state.delete_messages(set(messages))

    def end_uploads(self) -> None:
        with self.state.session() as session:
            session.execute(update(ObjectPushSession).values(expires_at=now() - timedelta(hours=1)))


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def ask(app: App) -> Iterable[str]:
    return app.grid.push_messages([Message(RecordDict({"do": ConfigRecord({"what": "work"})}), app.node, "train")])


def test_a_message_and_its_reply_need_no_connection(app: App) -> None:
    assert list(app.grid.get_node_ids()) == [app.node]
    identities = list(ask(app))
    assert len(identities) == 1
    assert list(app.grid.pull_messages(identities)) == []
    app.answer("done")
    [reply] = app.grid.pull_messages(identities)
    assert reply.content["answer"] == ConfigRecord({"text": "done"})
    assert len(app.state.object_store) == 3, "the reply is forgotten, the message that the node did not confirm is not"


def test_an_app_whose_run_was_stopped_is_not_served_any_more(app: App) -> None:
    ask(app)
    assert app.state.finish_task(app.task, SubStatus.STOPPED, "stopped")
    with pytest.raises(TaskEndedError):
        app.grid.get_node_ids()
    with pytest.raises(TaskEndedError):
        ask(app)


def test_a_token_that_is_not_one_opens_nothing(app: App) -> None:
    grid = HttpGrid(f"127.0.0.1:{free_port()}", insecure=True, token="0" * 32)
    connect_directly(grid, app.state)
    with pytest.raises(TaskEndedError):
        grid.get_node_ids()


def test_a_reply_that_cannot_be_taken_is_removed(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)  # so that it is put back afterwards
    replace_pulls(http_grid, Limits(10, 10**6))
    first = list(ask(app))
    app.answer("heaps", more=20)
    with pytest.raises(TooManyObjectsError):
        app.grid.pull_messages(first)
    before = len(app.state.object_store)
    assert list(app.grid.pull_messages([])) == []
    assert len(app.state.object_store) == before - 23
    second = list(ask(app))
    app.answer("done")
    assert len(list(app.grid.pull_messages(second))) == 1


def names(message: Message) -> set[str]:
    return set(get_all_nested_objects(message))


def kept(app: App, *messages: Message) -> set[str]:
    return {name for message in messages for name in names(message) if name in app.state.object_store}


@pytest.mark.parametrize("lacking", [0, 2])
def test_parts_of_answers_to_forgotten_messages_do_not_stay(
    app: App, lacking: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_client, "TIDY_SECONDS", 0.0)
    forgotten = list(ask(app))
    late = app.answer("too late", lacking=lacking)
    app.forget(*forgotten)
    app.grid.pull_messages([])
    if lacking:
        assert kept(app, late) == names(late), "its upload may go on"
        app.end_uploads()
        app.grid.pull_messages([])
    assert kept(app, late) == set()


def test_what_somebody_may_still_ask_for_stays(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_client, "TIDY_SECONDS", 0.0)
    whole, half, open_ = list(ask(app)), list(ask(app)), list(ask(app))
    done, begun = app.answer("done"), app.answer("begun", lacking=2)
    app.grid.pull_messages([])
    assert kept(app, done, begun) == names(done) | names(begun)
    app.end_uploads()
    app.grid.pull_messages([])
    assert kept(app, begun) == names(begun), "it is handed out, and fails"

    tidied_meanwhile: list[set[str]] = []
    pull = http_grid.pull_objects

    def pulled_slowly(*arguments: Any, **options: Any) -> Any:
        other = Thread(target=app.grid.pull_messages, args=([],))
        other.start()
        other.join()
        tidied_meanwhile.append(kept(app, done))
        return pull(*arguments, **options)

    monkeypatch.setattr(http_grid, "pull_objects", pulled_slowly)
    [reply] = app.grid.pull_messages(whole)
    assert reply.content["answer"] == ConfigRecord({"text": "done"})
    assert tidied_meanwhile == [names(done)]
    assert [message.has_error() for message in app.grid.pull_messages(half)] == [True]
    assert len(app.state.get_message_ins(app.node, 5)) == len(open_)
