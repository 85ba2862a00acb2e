"""A task that waits for its reply."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.consent.site_config import SiteNetwork
from client.courier.connection import Access, client_context
from client.courier.errors import StoppedError
from client.courier.fleet_client import FleetNode
from client.courier.mailbox import HeldTask, Mailbox
from client.courier.proxy import Address
from client.courier.retry import Retries
from client.courier.task_handler import TaskContext, TaskHandler
from client.courier.transfers.pace import Pace
from client.courier.transfers.transfers import Transfers
from client.flower import MessageHeader
from client.shared_folder import SharedFolder, Work
from common.audit import AuditLog
from common.certificates import site_identity
from common.protocol.codec import pack
from tests.client.courier.kits import Kits
from tests.client.courier.site import task
from tests.client.courier.stand_in import Attempt, StandIn, stand_in, wait_for


class Waiting:
    """A task in the inbox, and what handles it."""

    def __init__(self, gateway: StandIn, folder: Path) -> None:
        kit = gateway.kits.site(folder / "kit", gateway.port)
        gateway.let_in(kit)
        address = Address("127.0.0.1", gateway.port)
        access = Access("north", site_identity(kit, "north").key, client_context(kit), address, kit / "ca.crt", list)
        self.stop = threading.Event()
        self.shared = SharedFolder(folder / "shared")
        self.shared.make()
        self.mailbox = Mailbox(folder / "state")
        retries = Retries(self.stop)
        self.context = TaskContext(
            self.shared,
            self.mailbox,
            Transfers(access, Pace(SiteNetwork(), self.stop), retries),
            FleetNode(access, folder / "node"),
            AuditLog(folder / "audit.jsonl"),
            retries,
        )
        self.question = task(gateway.publish(b"model"))
        header = MessageHeader()
        header.metadata.message_id = "b" * 64
        self.mailbox.put(HeldTask(self.question.name, header.SerializeToString(), pack(self.question)))
        self.ends: list[str] = []
        handler = TaskHandler(self.question.name, self.context, lambda: self.ends.append("end"), ask_every=5)
        self.attempt = Attempt(handler.run)
        wait_for(self.shared.task(self.question.name).exists, "the task")


@pytest.fixture
def gateway(kits: Kits) -> Iterator[StandIn]:
    with stand_in(kits) as gateway:
        yield gateway


@pytest.fixture
def waiting(gateway: StandIn, tmp_path: Path) -> Iterator[Waiting]:
    waiting = Waiting(gateway, tmp_path)
    yield waiting
    waiting.stop.set()
    waiting.attempt.end()


def test_a_task_that_nobody_wants_any_more_is_let_go(gateway: StandIn, waiting: Waiting) -> None:
    gateway.models.clear()
    wait_for(lambda: waiting.ends, "the end")
    waiting.attempt.end()
    assert waiting.attempt.error is None
    assert waiting.mailbox.names() == ()
    assert not list(waiting.shared.inbox.iterdir())


def test_a_task_that_the_runner_has_begun_with_stays(gateway: StandIn, waiting: Waiting) -> None:
    waiting.shared.set_work(Work(waiting.question.name, 1, 9))
    waiting.stop.wait(0.3)  # a question that is under way already may be answered
    gateway.models.clear()
    gateway.requests.clear()
    waiting.stop.wait(0.5)
    assert not gateway.requests
    assert waiting.mailbox.names() == (waiting.question.name,)
    waiting.stop.set()
    waiting.attempt.end()
    assert isinstance(waiting.attempt.error, StoppedError)


def test_a_server_that_is_away_may_still_want_it(gateway: StandIn, waiting: Waiting) -> None:
    fault = gateway.add("HEAD", "/models/.*", times=3, status=503)
    wait_for(lambda: fault.seen == 3, "three questions")
    assert waiting.mailbox.names() == (waiting.question.name,)
