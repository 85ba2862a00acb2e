"""A federation whose sites hang, die, come late, and come back: no one of them stops the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, MessageType

from common.messages import Progress
from common.protocol import Task, Vector, pack_progress, pack_wait
from server.app import FederationError, Patience
from server.state import RunFolder
from tests import tiny
from tests.server.fake_sites import (
    LAYOUT,
    ShakyGrid,
    Silent,
    app_of,
    honest,
    is_task,
    nodes,
    run,
    site,
)

QUICK = Patience(
    deadline_seconds=0.4,
    gathering_seconds=0.3,
    offline_seconds=0.1,
    stall_seconds=0.2,
    look_seconds=0.01,
    retry_seconds=0.05,
)
CALM = replace(QUICK, deadline_seconds=30)
THREE = [site("a", 30, 1.0), site("b", 20, 1.2), site("c", 10, 0.8)]
TWO_OF_THREE = {"min_sites": 2}


def statuses(folder: RunFolder) -> list[dict[str, str]]:
    return [{name: line["status"] for name, line in item["sites"].items()} for item in folder.read_rounds()]


def events(folder: RunFolder) -> str:
    return (folder.path / "events.jsonl").read_text()


def mean(*members: tuple[str, int, object], steps: tuple[float, ...]) -> float:
    return sum(item[1] * step for item, step in zip(members, steps, strict=True)) / sum(item[1] for item in members)


def test_patience_changes_nothing_when_all_are_well(tmp_path: Path) -> None:
    plain, patient = RunFolder.create(tmp_path / "plain"), RunFolder.create(tmp_path / "patient")
    config = tiny.federation(rounds=3)
    run(config, app_of(THREE), LAYOUT, 3, plain)
    run(config, app_of(THREE), LAYOUT, 3, patient, ShakyGrid(app_of(THREE), nodes(3)), CALM)
    np.testing.assert_array_equal(patient.load_checkpoint(3, LAYOUT), plain.load_checkpoint(3, LAYOUT))
    lines = [[{**line, "seconds": 0} for line in folder.read_rounds()] for folder in (plain, patient)]
    assert lines[0] == lines[1]


def test_a_site_that_hangs_costs_a_deadline_and_nothing_else(tmp_path: Path) -> None:
    """It answers greetings and never a task; after the second time it sits rounds out."""
    folder = RunFolder.create(tmp_path / "run")
    grid = ShakyGrid(app_of(THREE), nodes(3), hangs=lambda node, message: node == 3 and is_task(message))
    run(tiny.federation(rounds=5, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, QUICK)
    both = mean(*THREE[:2], steps=(1.0, 1.2))
    np.testing.assert_allclose(folder.load_checkpoint(5, LAYOUT), np.full(4, 5 * both), rtol=1e-6)
    assert all(item["a"] == item["b"] == "ok" for item in statuses(folder))
    assert [item.get("c") for item in statuses(folder)].count("missing") <= 3
    assert statuses(folder)[0]["c"] == "missing"


def test_a_site_that_hangs_altogether_is_asked_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    hung = threading.Event()

    def hangs(node: int, message: Message) -> bool:
        if node == 3 and is_task(message):
            hung.set()
        return node == 3 and hung.is_set()

    grid = ShakyGrid(app_of(THREE), nodes(3), hangs=hangs)
    run(tiny.federation(rounds=4, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, QUICK)
    assert [item.get("c") for item in statuses(folder)] == ["missing", None, None, None, None]


def test_a_late_reply_is_not_counted_and_the_site_joins_again(tmp_path: Path) -> None:
    """The reply to round 1 comes in round 2; from then on the site is in time."""
    folder = RunFolder.create(tmp_path / "run")
    tasks: list[tuple[str, Task]] = []
    app = app_of(THREE, tasks)
    grid: ShakyGrid

    def hangs(node: int, message: Message) -> bool:
        first = node == 3 and message.metadata.group_id == "1"
        greeting = node == 3 and len([item for item in grid.asked if item[2] == "1" and item[0] == 3]) == 1
        later = any(group == "2" for _, _, group in grid.asked)
        return (first or (greeting and not is_task(message) and bool(tasks))) and not later

    grid = ShakyGrid(app, nodes(3), hangs=hangs)
    run(tiny.federation(rounds=6, strategy=TWO_OF_THREE), app, LAYOUT, 3, folder, grid, QUICK)
    found = [item.get("c") for item in statuses(folder)]
    assert found[0] == "missing"
    assert found[-1] == "ok"
    assert ("c", 1) in [(name, task.round) for name, task in tasks], "its work of round 1 was pulled away"
    missed = [number for number, status in enumerate(found[:6], start=1) if status != "ok"]
    without, whole = mean(*THREE[:2], steps=(1.0, 1.2)), mean(*THREE, steps=(1.0, 1.2, 0.8))
    expected = len(missed) * without + (6 - len(missed)) * whole
    np.testing.assert_allclose(folder.load_checkpoint(6, LAYOUT), np.full(4, expected), rtol=1e-6)


def test_a_site_that_dies_in_every_round(tmp_path: Path) -> None:
    """Its node goes offline as soon as it has a task, and is back when the round is over."""
    folder = RunFolder.create(tmp_path / "run")
    grid: ShakyGrid

    def online(node: int) -> bool:
        mine = [group for asked, kind, group in grid.asked if asked == 3 and kind == MessageType.TRAIN]
        done = len(folder.read_rounds())
        return node != 3 or not mine or int(mine[-1]) <= done

    grid = ShakyGrid(app_of(THREE), nodes(3), online=online)
    run(tiny.federation(rounds=5, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, CALM)
    found = statuses(folder)
    assert all(item["a"] == item["b"] == "ok" for item in found)
    assert found[0]["c"] == "failed"
    assert "ok" not in [item.get("c") for item in found[:5]]
    np.testing.assert_allclose(
        folder.load_checkpoint(5, LAYOUT), np.full(4, 5 * mean(*THREE[:2], steps=(1.0, 1.2))), rtol=1e-6
    )


def test_a_node_that_is_offline_for_a_moment_loses_no_work(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    began: list[float] = []

    def online(node: int) -> bool:
        if node == 3 and any(kind == MessageType.TRAIN for _, kind, _ in grid.asked):
            began.append(time.monotonic())
            return time.monotonic() - began[0] > 0.15
        return True

    grid = ShakyGrid(app_of(THREE), nodes(3), online=online)
    patience = Patience(deadline_seconds=5, offline_seconds=2, look_seconds=0.01, retry_seconds=0.05)
    run(tiny.federation(rounds=3), app_of(THREE), LAYOUT, 3, folder, grid, patience)
    assert statuses(folder) == [{"a": "ok", "b": "ok", "c": "ok"}] * 4
    assert "site_left" in events(folder)


def test_a_site_that_comes_late_joins_the_next_round(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    grid = ShakyGrid(app_of(THREE), nodes(3), online=lambda node: node != 3 or len(folder.read_rounds()) >= 2)
    patience = Patience(gathering_seconds=0.1, look_seconds=0.0, retry_seconds=0.05)
    run(tiny.federation(rounds=5, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, patience)
    found = [item.get("c") for item in statuses(folder)]
    assert found[:2] == [None, None]
    assert found[-2:] == ["ok", "ok"]
    assert "site_ready" in events(folder)


def test_the_start_waits_for_all_sites_within_reason(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    looks: list[int] = []

    def online(node: int) -> bool:
        looks.append(node)
        return node != 3 or len(looks) > 60

    run(
        tiny.federation(rounds=1),
        app_of(THREE),
        LAYOUT,
        3,
        folder,
        ShakyGrid(app_of(THREE), nodes(3), online=online),
        Patience(gathering_seconds=30, look_seconds=0.01),
    )
    assert set(statuses(folder)[0]) == {"a", "b", "c"}


def test_no_round_begins_without_the_quorum(tmp_path: Path) -> None:
    """Two of three leave after round 1; the loop waits, says so, and goes on when one is back."""
    folder = RunFolder.create(tmp_path / "run")
    observer = Silent()

    def online(node: int) -> bool:
        left = len(folder.read_rounds()) >= 1 and not any("are needed" in text for text in observer.messages[1:])
        return node == 1 or not left

    run(
        tiny.federation(rounds=3, strategy={"min_fraction": 0.5}),
        app_of(THREE),
        LAYOUT,
        3,
        folder,
        ShakyGrid(app_of(THREE), nodes(3), online=online),
        CALM,
        observer,
    )
    assert all(len([1 for status in item.values() if status == "ok"]) >= 2 for item in statuses(folder))
    assert "waiting_for_quorum" in events(folder)


def test_a_name_that_another_site_registered_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    sites = [THREE[0], THREE[1], ("a", 10, honest("a", 10, 50.0))]
    registered = {1: "a", 2: "b", 3: "c"}
    run(
        tiny.federation(rounds=2),
        app_of(sites),
        LAYOUT,
        3,
        folder,
        ShakyGrid(app_of(sites), nodes(3)),
        CALM,
        names=registered.get,
    )
    assert all(set(item) == {"a", "b"} for item in statuses(folder))
    assert "wrong-site" in events(folder)
    np.testing.assert_allclose(
        folder.load_checkpoint(2, LAYOUT), np.full(4, 2 * mean(*THREE[:2], steps=(1.0, 1.2))), rtol=1e-6
    )


def test_a_node_that_nobody_registered_takes_no_part(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    grid = ShakyGrid(app_of(THREE), nodes(3))
    run(tiny.federation(rounds=1), app_of(THREE), LAYOUT, 3, folder, grid, CALM, names={1: "a", 2: "b"}.get)
    assert set(statuses(folder)[0]) == {"a", "b"}


class Poisonous(ShakyGrid):
    """Reading the replies of node 3 raises, as a malformed message does in Flower."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        message_ids = list(message_ids)
        message = self._waiting.get(message_ids[0])
        if message is not None and message.metadata.dst_node_id == 3 and is_task(message):
            raise ValueError("object tree is a lie")
        return super().pull_messages(message_ids)


def test_a_reply_that_cannot_be_read_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    grid = Poisonous(app_of(THREE), nodes(3))
    run(tiny.federation(rounds=2, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, CALM)
    assert statuses(folder)[0] == {"a": "ok", "b": "ok", "c": "refused"}


class Stalling(ShakyGrid):
    """Pulling the reply of node 1 to round 1 blocks, as while an upload that has begun does not go on."""

    def __init__(self, *arguments: object, seconds: float) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._seconds = seconds
        self.order: list[int] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        message_ids = list(message_ids)
        message = self._waiting.get(message_ids[0])
        if message is not None and is_task(message):
            if message.metadata.dst_node_id == 1 and message.metadata.group_id == "1":
                threading.Event().wait(self._seconds)
            self.order.append(message.metadata.dst_node_id)
        return super().pull_messages(message_ids)


def test_an_upload_that_stalls_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    grid = Stalling(app_of(THREE), nodes(3), seconds=0.5)
    patience = Patience(deadline_seconds=10, stall_seconds=0.05, look_seconds=0.01)
    run(tiny.federation(rounds=1), app_of(THREE), LAYOUT, 3, folder, grid, patience)
    assert grid.order[:3] == [2, 3, 1]
    assert statuses(folder)[0] == {"a": "ok", "b": "ok", "c": "ok"}


def test_an_upload_that_never_ends_is_given_up(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    grid = Stalling(app_of(THREE), nodes(3), seconds=3)
    patience = Patience(deadline_seconds=0.4, stall_seconds=0.05, look_seconds=0.01)
    run(tiny.federation(rounds=1, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, patience)
    assert statuses(folder)[0] == {"a": "missing", "b": "ok", "c": "ok"}


class Walking(ShakyGrid):
    """Node 3 answers tasks and wait messages with signs of life: one more step each time, up to ``last``."""

    def __init__(self, *arguments: object, last: int, grows: bool = True, pause: float = 0) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._last = last
        self._grows = grows
        self._pause = pause
        self._held: Message | None = None
        self._seen: set[str] = set()
        self.step = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        message_ids = list(message_ids)
        message = self._waiting.get(message_ids[0])
        walks = message is not None and message.metadata.dst_node_id == 3 and message.metadata.group_id == "1"
        if not walks or message is None:
            return super().pull_messages(message_ids)
        if self._grows and message_ids[0] not in self._seen:
            self._seen.add(message_ids[0])
            return []
        threading.Event().wait(self._pause)
        if is_task(message):
            self._held = message
        if self.step < self._last:
            self.step += self._grows
            del self._waiting[message_ids[0]]
            return [Message(pack_progress(Progress("r1", 1, self.step, self._last)), reply_to=message)]
        assert self._held is not None
        assert message.content["wait"] == pack_wait("r1", 1)["wait"]
        del self._waiting[message_ids[0]]
        done = self._client_app(self._held, self._contexts[3])
        return [Message(done.content, reply_to=message)]


def test_a_site_that_shows_progress_moves_its_deadline(tmp_path: Path) -> None:
    """Twelve steps of 0.2 s and more against a deadline of 1.5 s."""
    folder = RunFolder.create(tmp_path / "run")
    grid, observer = Walking(app_of(THREE), nodes(3), last=12, pause=0.2), Silent()
    patience = Patience(deadline_seconds=1.5, look_seconds=0.01)
    run(tiny.federation(rounds=1), app_of(THREE), LAYOUT, 3, folder, grid, patience, observer)
    assert statuses(folder)[0] == {"a": "ok", "b": "ok", "c": "ok"}
    assert folder.read_rounds()[0]["seconds"] > 1.5
    assert observer.steps == [("c", step) for step in range(1, 13)]


def test_a_site_that_only_says_that_it_lives_does_not(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    grid = Walking(app_of(THREE), nodes(3), last=12, grows=False)
    patience = Patience(deadline_seconds=0.3, look_seconds=0.01)
    run(tiny.federation(rounds=1, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, patience)
    assert statuses(folder)[0] == {"a": "ok", "b": "ok", "c": "missing"}


class Kill(BaseException):
    """Stands for kill -9: nothing handles it."""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_updates_accepted_before_a_kill_are_not_asked_for_again(tmp_path: Path, after: int) -> None:
    """Killed in round 2, when ``after`` updates of it were accepted."""
    folder, whole = RunFolder.create(tmp_path / "run"), RunFolder.create(tmp_path / "whole")
    config = tiny.federation(rounds=3)
    tasks: list[tuple[str, Task]] = []

    def dying(index: int) -> tuple[str, int, object]:
        name, examples, answer = THREE[index]

        def answered(task: Task, weights: Vector) -> object:
            if task.round == 2 and index == after:
                raise Kill
            return answer(task, weights)

        return name, examples, answered

    with pytest.raises(Kill):
        run(config, app_of([dying(index) for index in range(3)]), LAYOUT, 3, folder)  # type: ignore[misc]
    run(config, app_of(THREE, tasks), LAYOUT, 3, folder)
    run(config, app_of(THREE), LAYOUT, 3, whole)
    assert [name for name, task in tasks if task.round == 2] == ["a", "b", "c"][after:]
    np.testing.assert_array_equal(folder.load_checkpoint(3, LAYOUT), whole.load_checkpoint(3, LAYOUT))
    assert [line["bytes_up"] for line in folder.read_rounds()] == [48, 48, 48, 0]
    states = [item.load_state() for item in (folder, whole)]
    assert states[0] is not None
    assert states[1] is not None
    assert {**states[0].model_dump(), "seconds": 0, "started": "", "bytes_down": 0} == {
        **states[1].model_dump(),
        "seconds": 0,
        "started": "",
        "bytes_down": 0,
    }
    assert not (folder.path / "spool").exists()


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=1)
    run(config, app_of(THREE), LAYOUT, 3, folder)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}

    class Nobody(ShakyGrid):
        def get_node_ids(self) -> Iterable[int]:
            raise AssertionError("nothing is left to ask")

    run(config, app_of(THREE), LAYOUT, 3, folder, Nobody(app_of(THREE), nodes(3)), QUICK)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before


def test_a_simulation_that_quarantine_leaves_too_small_says_so(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=9, strategy={"min_sites": 3, "max_failed_rounds": 9})

    def poison(task: Task, weights: Vector) -> object:
        result, update = honest("c", 10, 1.0)(task, weights)
        return result, None if update is None else update * np.nan

    sites = [*THREE[:2], ("c", 10, poison)]
    with pytest.raises(FederationError, match="quarantine: c"):
        run(config, app_of(sites), LAYOUT, 3, folder)  # type: ignore[arg-type]
