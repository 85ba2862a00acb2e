"""A federation whose sites hang, die, come late, and come back: no one of them stops the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict

from common.protocol.codec import Task, Vector
from common.weights.store import FileStore
from server.rounds.quarantine import read_releases, release
from server.rounds.round_loop import FederationError, Patience
from server.rounds.weight_transfer import StoreTransfer
from server.run_store.folder import RunFolder
from tests import tiny
from tests.server.fake_sites import (
    LAYOUT,
    FakeNetwork,
    Silent,
    Sites,
    app_of,
    honest,
    is_task,
    run,
    run_network,
    site,
)

QUICK = Patience(
    deadline_seconds=0.6,
    silence_seconds=0.4,
    offline_seconds=0.3,
    resend_seconds=0.1,
    gathering_seconds=0.3,
    stall_seconds=0.2,
    look_seconds=0.01,
    retry_seconds=0.05,
)
CALM = replace(QUICK, deadline_seconds=60, silence_seconds=60, offline_seconds=30)
THREE: Sites = [site("a", 30, 1.0), site("b", 20, 1.2), site("c", 10, 0.8)]
TWO_OF_THREE = {"min_sites": 2}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def statuses(folder: RunFolder) -> list[dict[str, str]]:
    return [{name: line["status"] for name, line in item["sites"].items()} for item in folder.read_rounds()]


def outcomes(folder: RunFolder, name: str) -> list[tuple[str, str | None] | None]:
    lines = [item["sites"].get(name) for item in folder.read_rounds()]
    return [line and (line["status"], line["reason"]) for line in lines]


def events(folder: RunFolder) -> str:
    return (folder.path / "events.jsonl").read_text()


def mean(*members: tuple[str, int, object], steps: tuple[float, ...]) -> float:
    return sum(item[1] * step for item, step in zip(members, steps, strict=True)) / sum(item[1] for item in members)


def test_a_network_changes_nothing_when_all_are_well(tmp_path: Path, folder: RunFolder) -> None:
    plain = RunFolder.create(tmp_path / "plain")
    config = tiny.federation(rounds=3)
    run(config, app_of(THREE), LAYOUT, 3, plain)
    run_network(config, FakeNetwork(folder, THREE), LAYOUT, CALM)
    np.testing.assert_array_equal(folder.load_checkpoint(3, LAYOUT), plain.load_checkpoint(3, LAYOUT))
    lines = [[{**line, "seconds": 0} for line in item.read_rounds()] for item in (plain, folder)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "transport", [{}, {"download": "bfloat16", "upload": "bfloat16"}, {"download": "bfloat16", "upload": "int8"}]
)
def test_at_the_end_nothing_is_open_and_no_update_is_left(folder: RunFolder, transport: dict[str, str]) -> None:
    network = FakeNetwork(folder, THREE)
    run_network(tiny.federation(rounds=1, transport=transport), network, LAYOUT, CALM)
    assert set(outcomes(folder, "c")) == {("ok", None)}
    gateway = network.gateway
    assert [gateway.open_tasks(name) for name in "abc"] == [[]] * 3
    left = [path for path in gateway.path.rglob("*") if path.is_file() and path.name != "heartbeat.json"]
    assert {path.parent.name for path in left} <= {"bells", "models", "updates"}
    assert not [path for path in left if path.parent.name == "updates" and path.name != ".spare"]
    assert not (folder.path / "updates").exists()


def test_a_site_that_hangs_costs_a_deadline_and_nothing_else(folder: RunFolder) -> None:
    """It answers greetings and never a task; after the second time it sits rounds out."""
    network = FakeNetwork(folder, THREE, hangs=lambda node, message: node == 3 and is_task(message))
    run_network(tiny.federation(rounds=5, strategy=TWO_OF_THREE), network, LAYOUT, QUICK)
    both = mean(*THREE[:2], steps=(1.0, 1.2))
    np.testing.assert_allclose(folder.load_checkpoint(5, LAYOUT), np.full(4, 5 * both), rtol=1e-6)
    assert all(item["a"] == item["b"] == "ok" for item in statuses(folder))
    found = outcomes(folder, "c")
    assert found[0] == ("missing", "deadline")
    assert found.count(("missing", "deadline")) <= 3


def test_a_site_that_hangs_altogether_is_asked_once(folder: RunFolder) -> None:
    hung = threading.Event()

    def hangs(node: int, message: Message) -> bool:
        if node == 3 and is_task(message):
            hung.set()
        return node == 3 and hung.is_set()

    network = FakeNetwork(folder, THREE, hangs=hangs)
    run_network(tiny.federation(rounds=4, strategy=TWO_OF_THREE), network, LAYOUT, QUICK)
    assert [item.get("c") for item in statuses(folder)] == ["missing", None, None, None, None]


def test_a_late_reply_is_not_counted_and_the_site_joins_again(folder: RunFolder) -> None:
    """It gets done with round 1 when round 2 has begun; from then on it is in time."""
    network: FakeNetwork

    def hangs(node: int, message: Message) -> bool:
        later = any(group == "2" for _, _, group in network.asked)
        return node == 3 and message.metadata.group_id == "1" and not later

    network = FakeNetwork(folder, THREE, hangs=hangs)
    run_network(tiny.federation(rounds=6, strategy=TWO_OF_THREE), network, LAYOUT, QUICK)
    found = [item.get("c") for item in statuses(folder)]
    assert found[0] == "missing"
    assert found[-1] == "ok"
    missed = [number for number, status in enumerate(found[:6], start=1) if status != "ok"]
    without, whole = mean(*THREE[:2], steps=(1.0, 1.2)), mean(*THREE, steps=(1.0, 1.2, 0.8))
    expected = len(missed) * without + (6 - len(missed)) * whole
    np.testing.assert_allclose(folder.load_checkpoint(6, LAYOUT), np.full(4, expected), rtol=1e-6)


def test_a_site_that_dies_in_every_round(folder: RunFolder) -> None:
    """Its node goes offline as soon as it has a task, and is back when the round is over."""
    network: FakeNetwork

    def online(node: int) -> bool:
        mine = [group for asked, kind, group in network.asked if asked == 3 and kind == MessageType.TRAIN]
        return node != 3 or not mine or int(mine[-1]) <= len(folder.read_rounds())

    network = FakeNetwork(folder, THREE, online=online)
    patience = replace(CALM, offline_seconds=0.3)
    run_network(tiny.federation(rounds=5, strategy=TWO_OF_THREE), network, LAYOUT, patience)
    found = statuses(folder)
    assert all(item["a"] == item["b"] == "ok" for item in found)
    assert outcomes(folder, "c")[0] == ("missing", "silence")
    assert "ok" not in [item.get("c") for item in found[:5]]
    np.testing.assert_allclose(
        folder.load_checkpoint(5, LAYOUT), np.full(4, 5 * mean(*THREE[:2], steps=(1.0, 1.2))), rtol=1e-6
    )


def test_a_node_that_is_offline_for_a_moment_loses_no_work(folder: RunFolder) -> None:
    """It leaves when it has its task, and comes back when that was noticed."""
    network: FakeNetwork

    def online(node: int) -> bool:
        has_task = any(asked == node and kind == MessageType.TRAIN for asked, kind, _ in network.asked)
        return node != 3 or not has_task or "site_left" in events(folder)

    network = FakeNetwork(folder, THREE, online=online)
    run_network(tiny.federation(rounds=3), network, LAYOUT, CALM)
    assert statuses(folder) == [{"a": "ok", "b": "ok", "c": "ok"}] * 4
    assert "site_left" in events(folder)


def test_a_site_that_comes_late_joins_the_next_round(folder: RunFolder) -> None:
    network = FakeNetwork(folder, THREE, online=lambda node: node != 3 or len(folder.read_rounds()) >= 2)
    patience = replace(CALM, gathering_seconds=0.1, look_seconds=0.0)
    run_network(tiny.federation(rounds=5, strategy=TWO_OF_THREE), network, LAYOUT, patience)
    found = [item.get("c") for item in statuses(folder)]
    assert found[:2] == [None, None]
    assert found[-2:] == ["ok", "ok"]
    assert "site_ready" in events(folder)


def test_a_site_that_returns_with_other_patients_waits_for_a_person(folder: RunFolder) -> None:
    """Site c declares a million patients after round 1: it takes no part until released, and then counts anew."""
    sites = list(THREE)

    def online(node: int) -> bool:
        if node == 3 and len(folder.read_rounds()) == 1:
            sites[2] = site("c", 10**6, 0.8)
            return False
        return True

    network = FakeNetwork(folder, sites, online=online)
    run_network(tiny.federation(rounds=5), network, LAYOUT, CALM)
    state = folder.load_state()
    assert state is not None
    assert [len(item) for item in statuses(folder)] == [3, 2, 2, 2, 2, 2]
    assert state.quarantine == {"c": "patients-changed"}
    told = "it declared 1,000,000 training patients and 2 validation patients, after 10 training patients and 2"
    assert told in state.alarms["quarantine c"]
    release(folder, "c")
    assert read_releases(folder, state) == ["c"]
    assert set(state.declared) == {"a", "b"} and state.changed == state.alarms == {}


def test_a_person_is_told_while_the_round_waits_for_a_site_with_other_patients(folder: RunFolder) -> None:
    """Three sites are needed, so that no round ends; once released, the site takes part with its new number."""
    sites, observer = list(THREE), Silent()

    def online(node: int) -> bool:
        if node == 3 and len(folder.read_rounds()) == 1 and sites[2][1] == 10:
            sites[2] = site("c", 12, 0.8)
            return False
        state = folder.load_state()
        if state is not None and "quarantine c" in state.alarms:
            release(folder, "c")
        return True

    network = FakeNetwork(folder, sites, online=online)
    run_network(tiny.federation(rounds=3, strategy={"min_sites": 3}), network, LAYOUT, CALM, observer)
    assert [item["c"] for item in statuses(folder)] == ["ok"] * 4
    assert any("ALARM: c is in quarantine: it declared 12 training patients" in text for text in observer.messages)
    assert "c was released from quarantine" in observer.messages


def test_a_late_site_with_a_million_patients_counts_as_one_of_the_others(folder: RunFolder) -> None:
    sites = [*THREE[:2], site("c", 10**6, 0.8)]
    network = FakeNetwork(folder, sites, online=lambda node: node != 3 or len(folder.read_rounds()) >= 2)
    patience = replace(CALM, gathering_seconds=0.1, look_seconds=0.0)
    run_network(tiny.federation(rounds=5, strategy=TWO_OF_THREE), network, LAYOUT, patience)
    rounds = sum("c" in item for item in statuses(folder)[:5])
    without = mean(*THREE[:2], steps=(1.0, 1.2))
    whole = mean(*THREE[:2], site("c", 25, 0.8), steps=(1.0, 1.2, 0.8))
    expected = (5 - rounds) * without + rounds * whole
    np.testing.assert_allclose(folder.load_checkpoint(5, LAYOUT), np.full(4, expected), rtol=1e-6)
    state = folder.load_state()
    assert state is not None and list(state.alarms) == ["patients c"]


def test_the_start_waits_for_all_sites_within_reason(folder: RunFolder) -> None:
    looks: list[int] = []

    def online(node: int) -> bool:
        looks.append(node)
        return node != 3 or len(looks) > 60

    network = FakeNetwork(folder, THREE, online=online)
    run_network(tiny.federation(rounds=1), network, LAYOUT, replace(CALM, gathering_seconds=30))
    assert set(statuses(folder)[0]) == {"a", "b", "c"}


def test_no_round_begins_without_the_quorum(folder: RunFolder) -> None:
    """Two of three leave after round 1; the loop waits, says so, and goes on when one is back."""
    observer = Silent()

    def online(node: int) -> bool:
        left = len(folder.read_rounds()) >= 1 and not any("are needed" in text for text in observer.messages[1:])
        return node == 1 or not left

    network = FakeNetwork(folder, THREE, online=online)
    run_network(tiny.federation(rounds=3, strategy={"min_fraction": 0.5}), network, LAYOUT, CALM, observer)
    assert all(len([1 for status in item.values() if status == "ok"]) >= 2 for item in statuses(folder))
    assert "waiting_for_quorum" in events(folder)


def test_a_name_that_another_site_registered_is_refused(folder: RunFolder) -> None:
    sites = [THREE[0], THREE[1], ("a", 10, honest("a", 10, 50.0))]
    network = FakeNetwork(folder, sites, {1: "a", 2: "b", 3: "c"})
    run_network(tiny.federation(rounds=2), network, LAYOUT, CALM)
    assert all(set(item) == {"a", "b"} for item in statuses(folder))
    assert "wrong-site" in events(folder)
    np.testing.assert_allclose(
        folder.load_checkpoint(2, LAYOUT), np.full(4, 2 * mean(*THREE[:2], steps=(1.0, 1.2))), rtol=1e-6
    )


def test_a_node_that_nobody_registered_takes_no_part(folder: RunFolder) -> None:
    network = FakeNetwork(folder, THREE, {1: "a", 2: "b"})
    run_network(tiny.federation(rounds=1), network, LAYOUT, CALM)
    assert set(statuses(folder)[0]) == {"a", "b"}


class Poisonous(FakeNetwork):
    """Reading the replies of node 3 raises, as a malformed message does in Flower."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if any(reply.metadata.src_node_id == 3 and is_task(reply) for reply in replies):
            raise ValueError("object tree is a lie")
        return replies


def test_a_reply_that_cannot_be_read_is_refused_and_the_run_goes_on(folder: RunFolder) -> None:
    run_network(tiny.federation(rounds=2, strategy=TWO_OF_THREE), Poisonous(folder, THREE), LAYOUT, CALM)
    assert statuses(folder)[0] == {"a": "ok", "b": "ok", "c": "refused"}
    assert outcomes(folder, "c")[0] == ("refused", "missing-update")


def test_a_reply_that_cannot_be_read_is_not_one_of_the_malicious(folder: RunFolder) -> None:
    config = tiny.federation(rounds=2, strategy={"name": "median", "max_failed_rounds": 1})
    with pytest.raises(FederationError, match="missing-update at 1 of 3 sites, round 1"):
        run_network(config, Poisonous(folder, THREE), LAYOUT, CALM)


class Odd(FakeNetwork):
    """Node 3 answers tasks with something that holds no message of ours."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        return [
            Message(RecordDict(), reply_to=reply) if reply.metadata.src_node_id == 3 and is_task(reply) else reply
            for reply in replies
        ]


def test_a_reply_that_holds_no_message_is_refused_and_the_run_goes_on(folder: RunFolder) -> None:
    run_network(tiny.federation(rounds=2, strategy=TWO_OF_THREE), Odd(folder, THREE), LAYOUT, CALM)
    assert outcomes(folder, "c")[0] == ("refused", "protocol")


def test_a_superlink_that_is_gone_ends_the_run(folder: RunFolder) -> None:
    """The server app is started anew when there is one again."""

    class Gone(Poisonous):
        def get_node_ids(self) -> Iterable[int]:
            if any(kind == MessageType.TRAIN for _, kind, _ in self.asked) and self._poisoned:
                raise ConnectionError
            return super().get_node_ids()

        _poisoned = False

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            try:
                return super().pull_messages(message_ids)
            except ValueError:
                self._poisoned = True
                raise

    with pytest.raises(ConnectionError):
        run_network(tiny.federation(rounds=2, strategy=TWO_OF_THREE), Gone(folder, THREE), LAYOUT, CALM)
    run_network(tiny.federation(rounds=2, strategy=TWO_OF_THREE), FakeNetwork(folder, THREE), LAYOUT, CALM)
    assert set(outcomes(folder, "c")) == {("ok", None)}


class Stalling(FakeNetwork):
    """Pulling the reply of node 1 to round 1 blocks, as it does while SuperLink lacks a part of it."""

    seconds = 1.5

    def __init__(self, folder: RunFolder, answers: Sites) -> None:
        super().__init__(folder, answers)
        self.order: list[int] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            if is_task(reply):
                if reply.metadata.src_node_id == 1 and reply.metadata.group_id == "1":
                    threading.Event().wait(self.seconds)
                self.order.append(reply.metadata.src_node_id)
        return replies


def test_a_reply_that_stalls_does_not_keep_the_others_waiting(folder: RunFolder) -> None:
    network = Stalling(folder, THREE)
    run_network(tiny.federation(rounds=1), network, LAYOUT, replace(CALM, stall_seconds=0.05))
    assert network.order[:3] == [2, 3, 1]
    assert statuses(folder)[0] == {"a": "ok", "b": "ok", "c": "ok"}


def test_a_reply_that_never_comes_whole_is_given_up(folder: RunFolder) -> None:
    network, before = Stalling(folder, THREE), threading.active_count()
    network.seconds = 3
    patience = replace(CALM, deadline_seconds=0.4, stall_seconds=0.05)
    run_network(tiny.federation(rounds=1, strategy=TWO_OF_THREE), network, LAYOUT, patience)
    assert statuses(folder)[0] == {"a": "missing", "b": "ok", "c": "ok"}
    deadline = time.monotonic() + 20
    while threading.active_count() > before + 1:
        assert time.monotonic() < deadline, "the thread that waited for it does not end"
        time.sleep(0.05)


class Kill(BaseException):
    """Stands for kill -9: nothing handles it."""


def dying(index: int, after: int) -> tuple[str, int, Callable[[Task, Vector], object]]:
    """The site of this number; the server app dies when it looks at the one of number ``after`` in round 2."""
    name, examples, answer = THREE[index]

    def answered(task: Task, weights: Vector) -> object:
        if task.round == 2 and index == after:
            raise Kill
        return answer(task, weights)

    return name, examples, answered


def _state_without_times(folder: RunFolder) -> dict[str, object]:
    """The state, without times and without the digest of the lines, which hold times."""
    state = folder.load_state()
    assert state is not None
    digests = {name: digest for name, digest in state.digests.items() if name != "rounds.jsonl"}
    times = {"seconds": 0, "started": "", "bytes_down": 0, "rounds_bytes": 0}
    return {**state.model_dump(), **times, "digests": digests}


def check_that_nothing_was_lost(folder: RunFolder, whole: RunFolder) -> None:
    np.testing.assert_array_equal(folder.load_checkpoint(3, LAYOUT), whole.load_checkpoint(3, LAYOUT))
    lines = [[(line["bytes_up"], line["sites"]) for line in item.read_rounds()] for item in (folder, whole)]
    assert lines[0] == lines[1]
    first, second = (_state_without_times(item) for item in (folder, whole))
    assert first == second
    assert not (folder.path / "updates").exists()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_updates_accepted_before_a_kill_are_not_asked_for_again(tmp_path: Path, folder: RunFolder, after: int) -> None:
    """Killed in round 2, when ``after`` updates of it were accepted."""
    whole, store = RunFolder.create(tmp_path / "whole"), FileStore(tmp_path / "store")
    config = tiny.federation(rounds=3)
    tasks: list[tuple[str, Task]] = []
    with pytest.raises(Kill):
        sites: Sites = [dying(index, after) for index in range(3)]  # type: ignore[misc]
        run(config, app_of(sites, store=store), LAYOUT, 3, folder, transfer=StoreTransfer(store, "float32"))
    run(config, app_of(THREE, tasks, store), LAYOUT, 3, folder, transfer=StoreTransfer(store, "float32"))
    run(config, app_of(THREE), LAYOUT, 3, whole)
    assert [name for name, task in tasks if task.round == 2] == ["a", "b", "c"][after:]
    check_that_nothing_was_lost(folder, whole)


@pytest.mark.parametrize("transport", [{}, {"download": "bfloat16", "upload": "int8"}])
def test_over_a_network_a_killed_server_app_goes_on_to_the_same_model(
    tmp_path: Path, folder: RunFolder, transport: dict[str, str]
) -> None:
    """Killed when two of three sites have answered in round 2; SuperLink and sites lived on."""
    whole = RunFolder.create(tmp_path / "whole")
    config = tiny.federation(rounds=3, transport=transport)
    tasks: list[tuple[str, Task]] = []

    class Dying(FakeNetwork):
        dies = True

        def works(self, node: int, message: Message) -> bool:
            done = (self.folder.path / "updates").glob("*.json")
            if self.dies and message.metadata.group_id == "2" and node == 3:
                if len(list(done)) == 2:
                    raise Kill
                return False
            return True

    network = Dying(folder, THREE, tasks=tasks)
    with pytest.raises(Kill):
        run_network(config, network, LAYOUT, CALM)
    network.dies = False
    run_network(config, network, LAYOUT, CALM)
    run_network(config, FakeNetwork(whole, THREE), LAYOUT, CALM)
    assert [name for name, task in tasks if task.round == 2] == ["a", "b", "c"]
    check_that_nothing_was_lost(folder, whole)


def test_a_finished_run_is_left_as_it_is(folder: RunFolder) -> None:
    config = tiny.federation(rounds=1)
    run(config, app_of(THREE), LAYOUT, 3, folder)

    class Nobody(FakeNetwork):
        def get_node_ids(self) -> Iterable[int]:
            raise AssertionError("nothing is left to ask")

    network = Nobody(folder, THREE)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    run_network(config, network, LAYOUT, QUICK)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before


def test_a_simulation_that_quarantine_leaves_too_small_says_so(folder: RunFolder) -> None:
    config = tiny.federation(rounds=9, strategy={"min_sites": 3, "max_failed_rounds": 9})

    def poison(task: Task, weights: Vector) -> object:
        result, update = honest("c", 10, 1.0)(task, weights)
        return result, None if update is None else update * np.nan

    sites = [*THREE[:2], ("c", 10, poison)]
    with pytest.raises(FederationError, match="quarantine: c"):
        run(config, app_of(sites), LAYOUT, 3, folder)  # type: ignore[arg-type]
