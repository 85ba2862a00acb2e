"""A courier killed at any point of a task, and started again: the server gets one answer, and the update once."""

from __future__ import annotations

import fcntl
import hashlib
import random
import subprocess
import threading
from collections.abc import Iterator

import pytest

from common.audit import verify
from common.protocol.codec import from_record
from common.protocol.messages import Task
from tests.client.courier.kits import Kits
from tests.client.courier.site import StandInSite, result, site, task
from tests.client.courier.stand_in import Fault, StandIn, stand_in
from tests.client.courier.superlink import SuperLink

_random = random.Random(4)
SIZE = 1_000_000


@pytest.fixture(scope="module")
def only_gateway(kits: Kits, link: SuperLink) -> Iterator[StandIn]:
    with stand_in(kits, link.port) as gateway:
        yield gateway


@pytest.fixture
def gateway(only_gateway: StandIn) -> Iterator[StandIn]:
    yield only_gateway
    only_gateway.reset()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, only_gateway: StandIn, link: SuperLink) -> Iterator[StandInSite]:
    with site(tmp_path_factory.mktemp("north"), only_gateway, link) as north:
        yield north


class Case:
    """One task of a site, on its way."""

    def __init__(self, north: StandInSite, gateway: StandIn, link: SuperLink, update_size: int = SIZE) -> None:
        self.north, self.gateway, self.link = north, gateway, link
        self.update = _random.randbytes(update_size)
        self.model = _random.randbytes(SIZE)
        self.question: Task = task(gateway.publish(self.model))
        self.name = self.question.name
        self.part = north.shared.inbox / f".{self.question.model}.part"
        self.sent = north.state / "courier" / f"{self.name}.sent"

    def ask(self) -> None:
        self.identity = self.north.ask(self.question, len(self.update))

    def answer(self) -> None:
        self.text = self.north.answer(self.name, result(self.question, self.update), self.update)

    def kill_at(self, what: str, is_there: object, fault: Fault | None = None) -> None:
        """Kills the courier when something is seen, lets go of what was held, and starts it again."""
        self.north.wait(is_there, what)
        self.north.kill()
        if fault is not None and fault.hold is not None:
            fault.hold.set()
        self.gateway.requests.clear()
        self.north.start()

    def finish(self) -> None:
        """Sees that it all ends well."""
        north = self.north
        north.wait_over(self.name)
        assert from_record(self.link.reply(self.identity).content) == self.text
        assert self.gateway.updates[hashlib.sha256(self.update).hexdigest()] == self.update
        assert not (north.shared.inbox / self.question.model).exists()
        assert not self.part.exists()
        events = [line["event"] for line in north.audit(self.name)]
        assert events[0] == "sending"
        assert events[-1] == "delivered"
        verify(north.state / "courier-audit.jsonl")
        assert not [file for file in north.shared.inbox.iterdir() if not file.name.startswith(".")]


@pytest.fixture
def case(running: StandInSite, gateway: StandIn, link: SuperLink) -> Case:
    return Case(running, gateway, link)


def test_between_writing_a_message_down_and_confirming_it(case: Case) -> None:
    fault = case.gateway.add("POST", ".*confirm-message-received", hold=threading.Event())
    case.ask()
    case.kill_at("the message", lambda: fault.seen and case.name in case.north.held(), fault)
    case.north.wait_task(case.name)
    assert case.gateway.asked("POST", ".*confirm-message-received")
    case.answer()
    case.finish()


def test_in_a_download(case: Case) -> None:
    fault = case.gateway.add("GET", "/models/.*", slow=0.1)
    case.ask()
    case.kill_at("a part of the model", lambda: case.part.exists() and case.part.stat().st_size > 100_000, fault)
    case.north.wait_task(case.name)
    [request] = case.gateway.asked("GET", "/models/.*")
    assert int(request.headers["range"].removeprefix("bytes=").split("-")[0]) > 100_000
    assert (case.north.shared.inbox / case.question.model).stat().st_size == SIZE
    case.answer()
    case.finish()


def test_between_the_model_and_its_task(case: Case) -> None:
    case.gateway.add("GET", "/models/.*", hold=(held := threading.Event()))
    case.ask()
    case.north.wait(lambda: case.name in case.north.held(), "the message")
    case.north.kill()
    (case.north.shared.inbox / case.question.model).write_bytes(case.model)
    case.gateway.requests.clear()
    case.north.start()
    case.north.wait_task(case.name)
    # The gateway notes a request when it answers: the killed courier's is held until here.
    assert not case.gateway.asked("GET", "/models/.*")
    held.set()
    case.answer()
    case.finish()


def test_between_task_and_reply(case: Case) -> None:
    case.ask()
    case.kill_at("the task", case.north.shared.task(case.name).exists)
    case.answer()
    case.finish()
    assert not case.gateway.asked("GET", "/models/.*")


def test_with_a_reply_that_comes_while_it_is_away(case: Case) -> None:
    case.ask()
    case.north.wait_task(case.name)
    case.north.kill()
    case.answer()
    case.north.start()
    case.finish()


def test_in_an_upload(running: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    case = Case(running, gateway, link, 20 * SIZE)  # more than the buffers of a connection hold
    fault = case.gateway.add("PATCH", "/updates/.*", slow=0.01)
    case.ask()
    case.north.wait_task(case.name)
    case.answer()
    parts = case.gateway.parts
    key = case.name, hashlib.sha256(case.update).hexdigest()
    case.kill_at("a part of the update", lambda: len(parts.get(key, b"")) > SIZE, fault)
    case.finish()
    taken = [request for request in case.gateway.asked("PATCH", "/updates/.*") if request.status == 201]
    assert [int(request.headers["upload-offset"]) > SIZE for request in taken] == [True]


def test_in_an_announcement(case: Case) -> None:
    fault = case.gateway.add("POST", ".*push-object", hold=threading.Event())
    case.ask()
    case.north.wait_task(case.name)
    case.answer()
    case.kill_at("half an announcement", lambda: fault.seen and case.sent.exists(), fault)
    case.finish()
    assert not case.gateway.asked("PATCH", "/updates/.*")


def test_between_announcement_and_removal(case: Case) -> None:
    fault = case.gateway.add("POST", ".*push-object", hold=threading.Event())
    case.ask()
    case.north.wait_task(case.name)
    case.answer()
    case.north.wait(lambda: fault.seen, "the announcement")
    with (case.north.state / "courier-audit.jsonl").open("rb") as log:
        # "delivered" cannot be written, so nothing is removed.
        fcntl.flock(log, fcntl.LOCK_EX)
        assert fault.hold is not None
        fault.hold.set()
        case.kill_at("the whole announcement", lambda: len(case.gateway.asked("POST", ".*push-object")) == 3)
    case.finish()
    assert len(case.gateway.asked("POST", ".*push-messages")) == 1
    assert not case.gateway.asked("POST", ".*push-object")


@pytest.mark.parametrize("left", ["reply", "state"])
def test_in_the_removal(case: Case, left: str) -> None:
    """Killed after the task, or also after the reply and the weights, was removed: as the files are then."""
    fault = case.gateway.add("POST", ".*push-object", hold=threading.Event())
    case.ask()
    case.north.wait_task(case.name)
    case.answer()
    case.north.wait(lambda: fault.seen and case.sent.exists(), "the announcement")
    case.north.kill()
    case.north.shared.task(case.name).unlink()
    if left == "state":
        case.north.shared.reply(case.name).unlink()
        (case.north.shared.inbox / case.question.model).unlink()
    assert fault.hold is not None
    fault.hold.set()
    case.north.start()
    case.finish()


def test_leftovers_of_tasks_that_are_not_held_are_removed(case: Case) -> None:
    north = case.north
    north.kill()
    leftovers = [
        north.shared.task("d" * 32),
        north.shared.inbox / ("d" * 64),
        north.shared.inbox / f".{'d' * 64}.part",
    ]
    for file in leftovers:
        file.write_bytes(b"left")
    damaged = north.state / "courier" / f"{'c' * 32}.json"
    damaged.write_text("{")
    north.start()
    case.ask()
    north.wait_task(case.name)
    assert not any(file.exists() for file in leftovers)
    assert f"{damaged}: was changed or cut" in north.log
    damaged.with_name(f"{damaged.name}.damaged").unlink()
    case.answer()
    case.finish()


def test_another_courier_in_the_same_folder_is_refused(case: Case) -> None:
    case.north.wait_connected()
    second = subprocess.run(case.north.command, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert "another courier works here" in second.stderr


def test_a_killed_courier_is_let_in_again_at_once(case: Case) -> None:
    north = case.north
    north.wait(lambda: (north.state / "contact").exists() and case.link.is_online(north.node), "the node")
    count = north.log.count("connected to")
    north.kill()
    assert case.link.is_online(north.node)  # as SuperLink believes
    case.gateway.requests.clear()
    north.start()
    north.wait(lambda: north.log.count("connected to") == count + 1, "the connection")
    asked = case.gateway.asked("POST", ".*(de)?activate-node")
    assert [request.status for request in asked] == [200, 200]
