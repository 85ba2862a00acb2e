"""What is changed in Flower's SuperNode, with Flower's own state and store; real processes are in tests/e2e."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from client import downlink
from client.downlink import Arrivals, answer_when_there, store_pieces_as_they_come
from common.pulls import replace_pulls

RUN = 7
ARRIVALS = Arrivals()


class Download:
    """A SuperNode that receives one message."""

    def __init__(self) -> None:
        self.message = Message(RecordDict({"numbers": ConfigRecord({"a": 1})}), dst_node_id=1, message_type="train")
        self.message.metadata.__dict__["_run_id"] = RUN
        self.message.metadata.__dict__["_message_id"] = self.message.object_id
        self.objects = {name: item.deflate() for name, item in get_all_nested_objects(self.message).items()}
        self.store = InMemoryObjectStore()
        self.state = InMemoryNodeState(self.store)
        self.state.store_run(Run.create_empty(RUN))
        self.confirmed: list[str] = []

    def run(self, pull: Callable[[int, str], bytes]) -> int | None:
        return start_client_internal._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (self.message, get_object_tree(self.message)),
            get_run=lambda _: pytest.fail("the run is known"),
            get_fab=lambda *_: pytest.fail("the run is known"),
            pull_object=pull,
            confirm_message_received=lambda _, identity: self.confirmed.append(identity),
            trusted_entities=None,
        )

    def stored(self) -> set[str]:
        return {name for name in self.objects if self.store.get(name)}


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> Download:
    for name in ("pull_objects", "_pull_and_store_message"):
        monkeypatch.setattr(start_client_internal, name, getattr(start_client_internal, name))
    for name, value in (("_run_id", RUN), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)
    replace_pulls(start_client_internal)
    store_pieces_as_they_come(start_client_internal, Arrivals())
    return Download()


def test_a_piece_is_there_while_another_is_on_its_way(download: Download) -> None:
    last = list(download.objects)[-1]
    others = set(download.objects) - {last}
    go_on = threading.Event()

    def pull(run: int, identity: str) -> bytes:
        assert run == RUN
        if identity == last:
            assert go_on.wait(30)
        return download.objects[identity]

    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(download.run(pull)))
    thread.start()
    deadline = time.monotonic() + 30
    while download.stored() != others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.is_alive()
    assert download.stored() == others
    assert not download.confirmed
    go_on.set()
    thread.join(30)
    assert found == [RUN]
    assert download.stored() == set(download.objects)
    assert download.confirmed == [download.message.metadata.message_id]


def test_nothing_stays_of_a_message_whose_download_failed(download: Download) -> None:
    last = list(download.objects)[-1]

    def pull(_: int, identity: str) -> bytes:
        if identity == last:
            raise ConnectionError("the line is cut")
        return download.objects[identity]

    assert download.run(pull) is None
    assert not download.stored()
    assert not download.confirmed


def test_a_piece_that_is_not_what_its_name_says_is_refused(download: Download) -> None:
    first, *_, last = download.objects
    wrong = {**download.objects, last: download.objects[first]}
    assert download.run(lambda _, identity: wrong[identity]) is None
    assert not download.stored()


def question(store: dict[str, bytes], identity: str) -> Callable[[], PullObjectResponse]:
    def answer(_: object, request: PullObjectRequest) -> PullObjectResponse:
        content = store.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None, object_available=bool(content), object_content=content or b""
        )

    asked = answer_when_there(answer, ARRIVALS)
    return lambda: asked(None, PullObjectRequest(object_id=identity))


def test_who_asks_for_a_piece_gets_it_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downlink, "LONGEST_WAIT_SECONDS", 60.0)
    store = {"a": b"", "b": b""}
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(question(store, "a")().object_content))
    thread.start()
    store["b"] = b"another"
    ARRIVALS.note()
    thread.join(0.1)
    assert thread.is_alive()
    store["a"] = b"content"
    ARRIVALS.note()
    thread.join(30)
    assert got == [b"content"]


def test_who_asks_for_a_piece_is_answered_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downlink, "LONGEST_WAIT_SECONDS", 0.05)
    answer = question({"a": b""}, "a")()
    assert (answer.object_found, answer.object_available) == (True, False)


def test_nobody_waits_for_a_piece_that_is_there_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downlink, "LONGEST_WAIT_SECONDS", 1e6)
    assert question({"a": b"x"}, "a")().object_content == b"x"
    assert not question({}, "a")().object_found
