"""A site's question for a message to SuperLink's own application, on its own state."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.proto import fleet_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.state.schema.linkstate_models import MessageIns
from sqlalchemy import update
from starlette.testclient import TestClient

from common.held_question import LARGEST_QUESTION, LONGEST_WAIT_SECONDS
from server.message_wait import PULL_MESSAGES, MessageWait
from tests.server.superlink_apps import Link, apps, link, push

__all__ = ["apps", "link"]


@pytest.fixture
def waiting(link: Link) -> Iterator[TestClient]:
    """SuperLink's application behind the wait, in an event loop of its own."""
    database = link.state._engine.url.database
    assert database
    with TestClient(MessageWait(link.ours.app, database), raise_server_exceptions=False) as client:
        yield client


def ask(link: Link, client: TestClient) -> tuple[list[str], float]:
    """Names of the messages to the node, and seconds until the answer."""
    began = time.monotonic()
    answer = link.ask(PULL_MESSAGES, fleet_pb2.PullMessagesRequest(node=Node(node_id=link.node)), client)
    messages = fleet_pb2.PullMessagesResponse.FromString(answer).messages_list
    return [message.metadata.message_id for message in messages], time.monotonic() - began


def test_a_message_that_comes_later_is_handed_out_at_once(link: Link, waiting: TestClient) -> None:
    asked: list[tuple[list[str], float]] = []
    thread = threading.Thread(target=lambda: asked.append(ask(link, waiting)))
    thread.start()
    thread.join(0.3)
    assert asked == []
    push(link)
    thread.join()
    [(names, seconds)] = asked
    assert names == [link.asked.object_id]
    assert 0.3 <= seconds < LONGEST_WAIT_SECONDS


def test_a_message_that_is_there_does_not_wait(link: Link, waiting: TestClient) -> None:
    push(link)
    names, seconds = ask(link, waiting)
    assert names == [link.asked.object_id]
    assert seconds < LONGEST_WAIT_SECONDS / 2


def test_without_a_message_the_answer_comes_after_a_second(link: Link, waiting: TestClient) -> None:
    names, seconds = ask(link, waiting)
    assert names == []
    assert seconds >= LONGEST_WAIT_SECONDS


def test_a_message_to_another_node_is_none(link: Link, waiting: TestClient) -> None:
    other = link.state.create_node("aid", "south", public_key_to_bytes(generate_key_pairs()[1]), 30.0)
    link.state.activate_node(other, 30.0)
    mine, link.node = link.node, other
    link.__post_init__()
    push(link)
    link.node = mine
    names, seconds = ask(link, waiting)
    assert names == []
    assert seconds >= LONGEST_WAIT_SECONDS


@pytest.mark.parametrize("body", [b"\xff", b""])
def test_what_cannot_be_read_is_refused_as_ever(link: Link, waiting: TestClient, body: bytes) -> None:
    headers = link.headers(PULL_MESSAGES, fleet_pb2.PullMessagesRequest())
    ours, flower = (app.post(PULL_MESSAGES, headers=headers, content=body) for app in (waiting, link.flower))
    assert ours.status_code == flower.status_code >= 400
    assert ours.content == flower.content


def test_a_stranger_is_refused(link: Link, waiting: TestClient) -> None:
    push(link)
    request = fleet_pb2.PullMessagesRequest(node=Node(node_id=link.node))
    headers = link.headers(PULL_MESSAGES, request, key=generate_key_pairs()[0])
    assert waiting.post(PULL_MESSAGES, headers=headers, content=request.SerializeToString()).status_code == 401


@pytest.mark.parametrize("path", ["/docs", PULL_MESSAGES])
def test_nothing_else_waits(link: Link, waiting: TestClient, path: str) -> None:
    began = time.monotonic()
    assert waiting.get(path).status_code == link.flower.get(path).status_code
    assert time.monotonic() - began < LONGEST_WAIT_SECONDS


def test_a_large_question_is_not_looked_into(link: Link, waiting: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MessageWait, "_look_for", lambda *_: pytest.fail("it was read in the event loop"))
    request = fleet_pb2.PullMessagesRequest(node=Node(node_id=link.node), message_ids=["x"] * LARGEST_QUESTION)
    headers = link.headers(PULL_MESSAGES, request)
    ours, flower = (
        app.post(PULL_MESSAGES, headers=headers, content=request.SerializeToString()) for app in (waiting, link.flower)
    )
    assert (ours.status_code, ours.content) == (flower.status_code, flower.content)


def test_a_message_whose_time_is_over_is_none(link: Link, waiting: TestClient) -> None:
    push(link)
    with link.state.session() as session:
        session.execute(update(MessageIns).values(ttl=-1.0).where(MessageIns.message_id == link.asked.object_id))
    names, seconds = ask(link, waiting)
    assert names == []
    assert seconds >= LONGEST_WAIT_SECONDS


def test_a_database_that_cannot_be_read_holds_nobody_up(link: Link, tmp_path: Path) -> None:
    push(link)
    with TestClient(MessageWait(link.ours.app, str(tmp_path / "gone"))) as client:
        assert ask(link, client)[0] == [link.asked.object_id]
        assert ask(link, client)[1] < LONGEST_WAIT_SECONDS / 2
