"""Signs of life: the work goes on behind them, and its reply is the one that would have come at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from client.app import make_client_app
from client.heartbeat import WAIT_TYPE, PatientApp, StepCounter
from common.protocol import (
    ErrorCode,
    Progress,
    Task,
    is_progress,
    pack_hello,
    pack_task,
    pack_wait,
    unpack_progress,
    unpack_result,
)
from server.app import Patience
from server.inline_grid import InlineGrid
from server.state import RunFolder
from tests import tiny
from tests.server.fake_sites import ShakyGrid, nodes, run

CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
TASK = Task("r1", "d", 1, 3, True)


@pytest.fixture(autouse=True)
def flower() -> None:
    """Messages take their sender from the process; a grid sets it."""
    InlineGrid(ClientApp(), {1: {}})


def train(task: Task = TASK) -> Message:
    return Message(pack_task(task, np.zeros(4, np.float32)), 1, MessageType.TRAIN)


def wait(round_number: int = 1, run_id: str = "r1") -> Message:
    return Message(pack_wait(run_id, round_number), 1, WAIT_TYPE)


class Work:
    """An app whose work goes on, step by step, as the test lets it."""

    def __init__(self, counter: StepCounter) -> None:
        self.counter = counter
        self.may_step = threading.Semaphore(0)
        self.stepped = threading.Semaphore(0)
        self.calls = 0
        self.ended: list[str] = []

    def __call__(self, message: Message, context: Context) -> Message:
        self.calls += 1
        try:
            self.counter.site_started(1, "a", 3)
            for step in range(1, 4):
                self.may_step.acquire()
                self.counter.site_step(1, "a", step, 3, None)
                self.stepped.release()
        except Exception as error:
            self.ended.append(type(error).__name__)
            return Message(Error(code=1000, reason=type(error).__name__), reply_to=message)
        self.ended.append("done")
        return Message(RecordDict({"done": pack_hello("r1", "d")["hello"]}), reply_to=message)

    def step(self, count: int) -> None:
        for _ in range(count):
            self.may_step.release()
            self.stepped.acquire()


def patient(seconds: float) -> tuple[PatientApp, Work]:
    counter = StepCounter()
    work = Work(counter)
    return PatientApp(work, counter, seconds), work


def test_work_that_is_done_in_time_is_answered_at_once() -> None:
    app, work = patient(60)
    for _ in range(3):
        work.may_step.release()
    assert set(app(train(), CONTEXT).content) == {"done"}


def test_signs_of_life_count_the_steps_and_the_reply_follows() -> None:
    app, work = patient(0.02)
    first = app(train(), CONTEXT)
    assert unpack_progress(first.content) == Progress("r1", 1, 0, 3)
    work.step(2)
    asked = wait()
    second = app(asked, CONTEXT)
    assert unpack_progress(second.content).step == 2
    assert second.metadata.reply_to_message_id == asked.metadata.message_id
    work.step(1)
    last = app(wait(), CONTEXT)
    while is_progress(last.content):
        last = app(wait(), CONTEXT)
    assert set(last.content) == {"done"}
    assert work.calls == 1


@pytest.mark.parametrize("question", [wait, lambda: wait(2), lambda: wait(1, "r2")])
def test_work_that_is_not_there_is_lost(question: Callable[[], Message]) -> None:
    app, work = patient(0.01)
    if question is not wait:
        app(train(), CONTEXT)
    reply = app(question(), CONTEXT)
    assert reply.has_error()
    assert reply.error.code == ErrorCode.TASK_LOST
    for _ in range(3):
        work.may_step.release()
    app.cancel()


def test_a_wait_message_of_another_form_is_refused() -> None:
    app, _ = patient(0.01)
    reply = app(Message(RecordDict({"wait": pack_hello("r", "d")["hello"]}), 1, WAIT_TYPE), CONTEXT)
    assert reply.error.code == ErrorCode.BAD_TASK


def test_asked_again_for_the_same_work_it_goes_on_with_it() -> None:
    app, work = patient(0.02)
    app(train(), CONTEXT)
    work.step(2)
    assert unpack_progress(app(train(), CONTEXT).content).step == 2
    assert work.calls == 1


def test_a_new_task_ends_the_old_one_at_its_next_step() -> None:
    app, work = patient(0.02)
    app(train(), CONTEXT)
    work.may_step.release()
    work.stepped.acquire()
    work.may_step.release()
    work.may_step.release()
    work.may_step.release()
    app(train(Task("r1", "d", 2, 3, True)), CONTEXT)
    assert work.calls == 2
    assert work.ended[0] in {"CancelledError", "done"}
    for _ in range(3):
        work.may_step.release()
    app.cancel()


def test_cancelled_work_stops_before_its_end() -> None:
    app, work = patient(0.02)
    app(train(), CONTEXT)
    work.step(1)
    work.counter.cancelled = True
    work.may_step.release()
    app.cancel()
    assert work.ended == ["CancelledError"]


class Strict:
    """A guard that sees everything and lets nothing of one kind out."""

    def __init__(self, forbidden: str = "") -> None:
        self.seen: list[str] = []
        self._forbidden = forbidden

    def check(self, digest: str) -> None: ...

    def record(self, kind: str, task: Message, reply: Message) -> None:
        self.seen.append(kind)
        if kind == self._forbidden:
            raise OSError("/var/audit is full")


def test_signs_of_life_are_written_down_and_what_cannot_be_does_not_leave() -> None:
    for guard in (Strict(), Strict("progress")):
        counter = StepCounter()
        work = Work(counter)
        app = PatientApp(work, counter, 0.01, guard)
        reply = app(train(), CONTEXT)
        assert guard.seen == ["progress"]
        assert reply.has_error() == (guard._forbidden == "progress")
        for _ in range(3):
            work.may_step.release()
        app.cancel()


def test_a_federation_with_signs_of_life_gives_the_same_model(tmp_path: Path) -> None:
    """Real training, and an interval so short that every task needs several messages."""
    config = tiny.federation(rounds=2)
    folders = [RunFolder.create(tmp_path / name) for name in ("plain", "patient")]
    sites = [tiny.site(name, seed, config.digest()) for seed, name in enumerate("ab")]
    layout = sites[0].trainer.layout
    plain = make_client_app(lambda context: sites[int(context.node_config["partition-id"])])
    run(config, plain, layout, 2, folders[0])

    counters = [StepCounter() for _ in sites]
    counted = [replace(site, observer=counter) for site, counter in zip(sites, counters, strict=True)]
    inner = make_client_app(lambda context: counted[int(context.node_config["partition-id"])])
    apps = [PatientApp(inner, counter, 0.02) for counter in counters]

    class Site(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            return apps[int(context.node_config["partition-id"])](message, context)

    grid = ShakyGrid(Site(), nodes(2))
    run(config, Site(), layout, 2, folders[1], grid, Patience(look_seconds=0.01))
    np.testing.assert_array_equal(folders[1].load_checkpoint(2, layout), folders[0].load_checkpoint(2, layout))
    assert sum(kind == WAIT_TYPE for _, kind, _ in grid.asked) > 2


def test_results_still_unpack() -> None:
    """The reply to a wait message is a whole result."""
    site = tiny.site("a", 1, "d")
    counter = StepCounter()
    app = PatientApp(make_client_app(lambda context: site), counter, 60)
    weights = np.zeros(site.trainer.layout.size, np.float32)
    reply = app(Message(pack_task(TASK, weights), 1, MessageType.TRAIN), CONTEXT)
    result, update = unpack_result(reply.content, site.trainer.layout.size)
    assert result.round == 1
    assert update is not None
