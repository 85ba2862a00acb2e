"""Messages that were handed out and never arrived, in Flower's own state in a real database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.schema.linkstate_models import MessageIns
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import update

from server.lost_tasks import hand_out_again


class State(SqlLinkState):
    """Flower's, so that the change stays in this test."""


hand_out_again(State)


class Link:
    """SuperLink with a message to each of two nodes; its database outlives it."""

    def __init__(self, path: Path, kind: type[SqlLinkState]) -> None:
        self._database, self._kind = str(path / "superlink.db"), kind
        self.state = self.start()
        self.nodes = [self.state.create_node("aid", name, name.encode(), 30.0) for name in ("north", "south")]
        for node in self.nodes:
            self.state.activate_node(node, 30.0)
        self.run = self.state.create_run(None, None, None, {}, "@none/default", None, None, TaskType.SERVER_APP)
        for name, value in {"run_id": self.run, "node_id": 1, "task_id": 1}.items():
            setattr(TaskIdentity, name, value)
        self.sent = [
            self.store(Message(RecordDict({"do": ConfigRecord({"node": str(node)})}), node, "train"))
            for node in self.nodes
        ]

    def start(self) -> SqlLinkState:
        """SuperLink, as it is after a kill."""
        self.state = self._kind(self._database, NoOpFederationManager(), ObjectStoreFactory(self._database).store())
        self.state.initialize()
        return self.state

    def store(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = message.object_id
        stored, _ = self.state.store_message_and_object_tree(
            message, get_object_tree(message), self.state.start_session(self.run)
        )
        assert stored
        return message

    def ask(self, node: int = 0) -> list[str]:
        return [found.metadata.message_id for found in self.state.get_message_ins(self.nodes[node], 1)]

    def later(self) -> None:
        """Everything was handed out a while ago, and SuperLink was killed since."""
        with self.state.session() as session:
            session.execute(update(MessageIns).values(delivered_at="2026-01-01T00:00:00+00:00"))
        self.start()


@pytest.fixture
def link(tmp_path: Path) -> Link:
    return Link(tmp_path, State)


def test_what_was_lost_is_handed_out_again(link: Link) -> None:
    name = link.sent[0].object_id
    assert link.ask() == [name]
    link.later()
    assert link.ask() == [name]
    assert link.ask() == [], "it may be on its way"
    link.later()
    assert link.ask() == [name]


def test_flower_keeps_it(tmp_path: Path) -> None:
    link = Link(tmp_path, SqlLinkState)
    assert len(link.ask()) == 1
    link.later()
    assert link.ask() == [], "what this changes"


def test_it_is_not_looked_for_at_every_question(link: Link) -> None:
    assert len(link.ask()) == 1
    assert link.ask() == []
    with link.state.session() as session:
        session.execute(update(MessageIns).values(delivered_at="2026-01-01T00:00:00+00:00"))
    assert link.ask() == [], "the last look was less than a second ago"
    link.start()
    assert len(link.ask()) == 1


def confirmed(link: Link) -> None:
    link.state.object_store.delete(link.sent[0].object_id)


def answered(link: Link) -> None:
    reply = Message(RecordDict({"done": ConfigRecord({"a": 1})}), reply_to=link.sent[0])
    reply.metadata.__dict__["_src_node_id"] = link.nodes[0]
    link.store(reply)


def forgotten(link: Link) -> None:
    link.state.delete_messages({link.sent[0].object_id})


@pytest.mark.parametrize("what", [confirmed, answered, forgotten])
def test_what_has_arrived_is_not(link: Link, what: Callable[[Link], None]) -> None:
    assert len(link.ask()) == 1
    what(link)
    link.later()
    assert link.ask() == []


def test_another_node_gets_its_own_alone(link: Link) -> None:
    for node, sent in enumerate(link.sent):
        assert link.ask(node) == [sent.object_id]
    link.later()
    for node, sent in enumerate(link.sent):
        assert link.ask(node) == [sent.object_id]
