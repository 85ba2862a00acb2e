"""Against Flower's own state in a real database."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.schema.corestate_models import ObjectPushSession
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import Engine, event, update

from server.whole_replies import hand_out_whole_replies


class State(SqlLinkState):
    """Flower's, so that the change stays in this test."""


hand_out_whole_replies(State)


@dataclass
class Announced:
    """A reply that was announced, and what the server lacks of it."""

    reply: Message
    session: str
    missing: list[str]


@dataclass
class Link:
    """SuperLink's state with one run, one node and one message to it."""

    state: SqlLinkState
    run: int
    node: int
    other: int
    asked: Message = field(init=False)

    def __post_init__(self) -> None:
        self.asked = Message(RecordDict({"do": ConfigRecord({"what": "work"})}), self.node, "train")
        self._name(self.asked)
        session = self.state.start_session(self.run)
        stored, _ = self.state.store_message_and_object_tree(self.asked, get_object_tree(self.asked), session)
        assert stored

    @staticmethod
    def _name(message: Message) -> None:
        message.metadata.__dict__["_message_id"] = message.object_id

    def reply(self, text: str, node: int | None = None) -> Message:
        made = Message(
            RecordDict({"a": ConfigRecord({"a": text}), "b": ConfigRecord({"b": text})}), reply_to=self.asked
        )
        made.metadata.__dict__["_src_node_id"] = node or self.node
        self._name(made)
        return made

    def announce(self, reply: Message) -> Announced | None:
        """As SuperLink's handler does; None if it is turned away."""
        session = self.state.start_session(self.run)
        stored, missing = self.state.store_message_and_object_tree(reply, get_object_tree(reply), session)
        return Announced(reply, session, missing) if stored else None

    def push(self, announced: Announced, count: int | None = None) -> None:
        objects = get_all_nested_objects(announced.reply)
        for identity in announced.missing[:count]:
            assert self.state.store_object(self.run, announced.session, identity, objects[identity].deflate())

    def handed_out(self) -> list[str]:
        return [message.metadata.message_id for message in self.state.get_message_res({self.asked.object_id}, self.run)]


@pytest.fixture(params=[State, SqlLinkState], ids=["ours", "flower"])
def link(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    database = str(tmp_path / "superlink.db")
    state = request.param(database, NoOpFederationManager(), ObjectStoreFactory(database).store())
    state.initialize()
    nodes = [state.create_node("aid", name, name.encode(), 30.0) for name in ("north", "south")]
    for node in nodes:
        state.activate_node(node, 30.0)
    run = state.create_run(None, None, None, {}, "@none/default", None, None, TaskType.SERVER_APP)
    for name, value in {"run_id": run, "node_id": 1, "task_id": 1}.items():
        setattr(TaskIdentity, name, value)
    return Link(state, run, *nodes)


def ours(link: Link) -> bool:
    return isinstance(link.state, State)


def test_a_reply_is_handed_out_when_its_last_piece_is_there(link: Link) -> None:
    announced = link.announce(link.reply("done"))
    assert announced is not None
    assert len(announced.missing) == 4
    if not ours(link):
        assert link.handed_out() == [announced.reply.object_id], "what this changes"
        return
    link.push(announced, 3)
    assert link.handed_out() == []
    announced.missing = announced.missing[3:]
    link.push(announced)
    assert link.handed_out() == [announced.reply.object_id]


def test_a_reply_that_is_announced_during_the_look_is_not_handed_out(link: Link) -> None:
    if not ours(link):
        pytest.skip("Flower does not look")
    reply = link.reply("done")
    announcing = threading.Thread(target=link.announce, args=[reply])

    def announce_after_the_look(*arguments: Any) -> None:
        if "object_push_session" in arguments[2] and announcing.ident is None:
            announcing.start()
            announcing.join(1)

    event.listen(Engine, "after_cursor_execute", announce_after_the_look)
    try:
        assert link.handed_out() == []
    finally:
        event.remove(Engine, "after_cursor_execute", announce_after_the_look)
    announcing.join()
    assert link.handed_out() == [], "nothing of it has come"
    again = link.announce(reply)
    assert again is not None
    link.push(again)
    assert link.handed_out() == [reply.object_id]


def test_what_is_still_missing_can_be_announced_again(link: Link) -> None:
    first = link.announce(link.reply("done"))
    assert first is not None
    link.push(first, 2)
    link.handed_out()
    again = link.announce(first.reply)
    if not ours(link):
        return
    assert again is not None
    assert sorted(again.missing) == sorted(first.missing[2:])
    link.push(again)
    assert link.handed_out() == [first.reply.object_id]


def test_a_site_may_give_another_answer_while_the_first_is_not_whole(link: Link) -> None:
    lost = link.announce(link.reply("half"))
    assert lost is not None
    link.push(lost, 2)
    other = link.announce(link.reply("lost"))
    if not ours(link):
        assert other is None, "what this changes"
        return
    assert other is not None
    link.push(other)
    assert link.handed_out() == [other.reply.object_id]
    assert link.state.object_store.get(lost.reply.object_id) is None


def test_a_whole_reply_is_not_replaced(link: Link) -> None:
    whole = link.announce(link.reply("done"))
    assert whole is not None
    link.push(whole)
    assert link.announce(link.reply("other")) is None
    assert link.handed_out() == [whole.reply.object_id]


def test_another_site_replaces_nothing(link: Link) -> None:
    half = link.announce(link.reply("half"))
    assert half is not None
    assert link.announce(link.reply("stolen", link.other)) is None
    link.push(half)
    assert link.handed_out() == [half.reply.object_id]


def test_what_does_not_come_is_handed_out_in_the_end(link: Link) -> None:
    announced = link.announce(link.reply("half"))
    assert announced is not None
    with link.state.session() as session:
        session.execute(update(ObjectPushSession).values(expires_at=now() - timedelta(hours=1)))
    assert link.handed_out() == [announced.reply.object_id], "so that the server app learns of it"
