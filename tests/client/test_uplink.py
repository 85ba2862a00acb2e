"""A broken line to the server; with real processes it is tested in tests/e2e/test_network_firewall.py."""

from __future__ import annotations

import httpx
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.task_identity import TaskIdentity

from client.uplink import MOST_ANNOUNCEMENTS, Upload, patient

RUN = 1
REQUEST = httpx.Request("POST", "https://server/v1/fleet/pull-messages")


def answer(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("refused", request=REQUEST, response=httpx.Response(status, request=REQUEST))


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (httpx.ReadError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol"), False),
        (httpx.ConnectTimeout("_ssl.c:1006: The handshake operation timed out"), False),
        (httpx.ConnectError("[Errno 111] Connection refused"), False),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), True),
        (answer(404), True),
        (answer(503), False),
    ],
)
def test_only_a_certificate_that_is_not_accepted_ends_the_attempts(error: Exception, ends: bool) -> None:
    gives_up = patient(make_simple_http_retry_invoker)().should_giveup
    assert gives_up is not None
    assert gives_up(error) is ends


class Server:
    """Takes every piece of a session once, as SuperLink does."""

    def __init__(self, wanted: set[str]) -> None:
        self.wanted = set(wanted)
        self.session = 0
        self.pending: set[str] = set()
        self.pushed: list[str] = []
        self.forgetful = False

    def send(self, message: Message, tree: object, seconds: float) -> tuple[set[str], str]:
        self.session += 1
        self.pending = set(self.wanted)
        return set(self.pending), str(self.session)

    def push_object(self, run: int, session: str, identity: str, content: bytes) -> None:
        self.pushed.append(identity)
        if self.forgetful or session != str(self.session) or identity not in self.pending:
            raise ObjectPushError(identity, run, session)
        assert content
        self.pending.remove(identity)
        self.wanted.remove(identity)


@pytest.fixture
def pieces() -> dict[str, bytes]:
    return {}


def upload(server: Server, pieces: dict[str, bytes]) -> tuple[Upload, str]:
    """A reply of five pieces or so, announced to the server."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
    records = RecordDict(
        {"update": ArrayRecord({str(index): Array("u1", (1,), "x", b"%d" % index) for index in range(4)})}
    )
    reply = Message(records, 7, "train")
    store = ObjectStoreFactory().store()
    tree = get_object_tree(reply)
    store.preregister(RUN, tree)
    for identity, item in get_all_nested_objects(reply).items():
        pieces[identity] = item.deflate()
        store.put(identity, pieces[identity])
    server.wanted = set(pieces)
    wanted, session = server.send(reply, tree, 1.0)
    return Upload(reply, tree, wanted, store, server.send, server.push_object), session


def test_a_piece_whose_confirmation_was_lost_costs_no_other_piece(pieces: dict[str, bytes]) -> None:
    server = Server(set())
    reply, session = upload(server, pieces)
    first = min(pieces)
    server.push_object(RUN, session, first, pieces[first])  # the server has it, and the site did not hear of it
    for identity in sorted(pieces):
        reply.push(RUN, session, identity, pieces[identity])
    assert not server.wanted
    assert sorted(server.pushed) == sorted([first, *pieces])


def test_what_the_server_gave_up_is_announced_anew_and_sent(pieces: dict[str, bytes]) -> None:
    server = Server(set())
    reply, session = upload(server, pieces)
    server.session += 1  # the session of before is over
    for identity in pieces:
        reply.push(RUN, session, identity, pieces[identity])
    assert not server.wanted


def test_a_server_that_takes_nothing_is_not_asked_for_ever(pieces: dict[str, bytes]) -> None:
    server = Server(set())
    reply, session = upload(server, pieces)
    server.forgetful = True
    *others, last = pieces
    for identity in others:
        reply.push(RUN, session, identity, pieces[identity])
    with pytest.raises(ObjectPushError):
        reply.push(RUN, session, last, pieces[last])
    assert server.session == 1 + MOST_ANNOUNCEMENTS
