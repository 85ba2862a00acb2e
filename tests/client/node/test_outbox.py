"""Outbox: every result arrives, or is set aside with the reason, and nothing is sent again that has arrived."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from client.node.folders import INSTANCES, RESULTS, STUDY_FILE, NodeFolders, names_in, read_note, write_note
from client.node.outbox import DESTINATION_FILE, Outbox, Patience, retry_unsent, set_aside_unserved
from client.node.service import remove_old
from client.node.studies import StudyQueue
from client.node.traces import remember_made
from common.errors import FedvoxError
from tests.client.node.studies import Clock, Killed, killed_at, one_result_each, put_waiting

PATIENCE = Patience(first_pause=10, longest_pause=100, give_up_seconds=3600)


class Destination:
    """Keeps what it gets, and does what a test wants."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.problem = ""
        self.down = False
        self.calls = 0

    def __call__(self, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        self.calls += 1
        if self.down:
            raise FedvoxError("PACS@pacs:104 cannot be reached")
        for path in paths:
            if not self.problem:
                self.got.append(path.stem)
            yield path, self.problem


@pytest.fixture
def folders(tmp_path: Path) -> NodeFolders:
    return filled(tmp_path / "state")


def filled(root: Path, *results: str) -> NodeFolders:
    folders = NodeFolders(root)
    with folders.locked():
        pass
    (folders.outbox / "pacs").mkdir(exist_ok=True)
    for result in results or ("1.1", "1.2"):
        put(folders, result)
    return folders


def put(folders: NodeFolders, result: str) -> Path:
    path = folders.outbox / "pacs" / f"{result}.dcm"
    path.write_text(result)
    remember_made(folders, path.parent)
    return path


def clock_of(folders: NodeFolders) -> Clock:
    clock = Clock()
    clock.now = max(path.stat().st_mtime for path in (folders.outbox / "pacs").iterdir())
    return clock


def test_sends_each_result_once(folders: NodeFolders) -> None:
    destination, outbox = Destination(), Outbox(folders, "pacs", PATIENCE)
    outbox.deliver(destination)
    outbox.deliver(destination)
    assert sorted(destination.got) == ["1.1", "1.2"] and destination.calls == 1
    assert names_in(folders.sent / "pacs") == ["1.1.dcm", "1.2.dcm"]
    assert not names_in(folders.outbox / "pacs")


def test_pauses_grow_while_a_destination_is_down_and_end_when_it_is_back(folders: NodeFolders) -> None:
    clock, destination = clock_of(folders), Destination()
    destination.down = True
    tries = []
    for _ in range(1000):
        before = destination.calls
        Outbox(folders, "pacs", PATIENCE, clock).deliver(destination)  # a new one each time, as after a restart
        if destination.calls > before:
            tries.append(clock.now)
        clock.now += 1
    pauses = [round(after - before) for before, after in pairwise(tries)]
    assert pauses[:4] == [10, 20, 40, 80] and set(pauses[4:]) == {100}
    assert "cannot be reached" in read_note(folders.outbox / "pacs" / DESTINATION_FILE)["reason"]
    destination.down = False
    clock.now += 100
    Outbox(folders, "pacs", PATIENCE, clock).deliver(destination)
    assert sorted(destination.got) == ["1.1", "1.2"] and not names_in(folders.outbox / "pacs")


def test_a_destination_that_is_down_for_long_sets_results_aside_and_another_try_sends_them(
    folders: NodeFolders,
) -> None:
    clock, destination = clock_of(folders), Destination()
    outbox = Outbox(folders, "pacs", PATIENCE, clock)
    destination.down = True
    outbox.deliver(destination)
    assert not names_in(folders.unsent / "pacs")
    clock.now += PATIENCE.give_up_seconds
    outbox.deliver(destination)
    assert names_in(folders.unsent / "pacs") == ["1.1.dcm", "1.1.json", "1.2.dcm", "1.2.json"]
    assert "cannot be reached" in read_note(folders.unsent / "pacs" / "1.1.json")["reason"]
    destination.down = False
    outbox.deliver(destination)
    assert not destination.got
    assert retry_unsent(folders, ["pacs"]) == 2
    Outbox(folders, "pacs", PATIENCE).deliver(destination)
    assert sorted(destination.got) == ["1.1", "1.2"] and not names_in(folders.unsent / "pacs")


def test_a_refused_result_does_not_keep_others(folders: NodeFolders) -> None:
    clock, destination = clock_of(folders), Destination()
    outbox = Outbox(folders, "pacs", PATIENCE, clock)
    destination.problem = "status 0xA900"
    outbox.deliver(destination)
    destination.problem = ""
    put(folders, "1.3")
    outbox.deliver(destination)
    assert destination.got == ["1.3"]
    clock.now += PATIENCE.first_pause
    outbox.deliver(destination)
    assert sorted(destination.got) == ["1.1", "1.2", "1.3"]
    assert not names_in(folders.outbox / "pacs")


@pytest.mark.parametrize("damage", ["1.", "1.1 ", "1.2"])
def test_a_damaged_file_is_not_sent_and_does_not_keep_others(folders: NodeFolders, damage: str) -> None:
    clock, destination = clock_of(folders), Destination()
    outbox = Outbox(folders, "pacs", PATIENCE, clock)
    (folders.outbox / "pacs" / "1.1.dcm").write_text(damage)
    outbox.deliver(destination)
    assert destination.got == ["1.2"]
    clock.now += PATIENCE.give_up_seconds
    outbox.deliver(destination)
    assert destination.got == ["1.2"]
    assert "damaged" in read_note(folders.unsent / "pacs" / "1.1.json")["reason"]


@pytest.mark.parametrize("is_down", [True, False])
def test_a_clock_that_was_years_ahead_holds_nothing_up(folders: NodeFolders, is_down: bool) -> None:
    clock, destination = clock_of(folders), Destination()
    right = clock.now
    clock.now += 10 * 365 * 86_400
    destination.down, destination.problem = is_down, "status 0xA900"
    outbox = Outbox(folders, "pacs", PATIENCE, clock)
    outbox.deliver(destination)
    clock.now = right
    outbox.deliver(destination)
    assert destination.calls == 2
    clock.now += PATIENCE.give_up_seconds  # counted anew, by the clock that is right
    outbox.deliver(destination)
    assert names_in(folders.unsent / "pacs")


def test_what_waited_long_is_kept_from_when_it_was_sent_and_never_comes_back(folders: NodeFolders) -> None:
    path = folders.outbox / "pacs" / "1.1.dcm"
    os.utime(path, (0, 0))
    study = put_waiting(folders, "1.9", "1.0")
    (study / RESULTS).mkdir()
    os.link(path, study / RESULTS / path.name)
    write_note(study / RESULTS / STUDY_FILE, {"version": 1, "series": []})
    Outbox(folders, "pacs", PATIENCE).deliver(Destination())
    remove_old(folders, 3600)
    assert path.name in names_in(folders.sent / "pacs")
    remove_old(folders, -1)
    assert not names_in(folders.sent / "pacs")
    assert StudyQueue(folders, one_result_each, ["pacs"]).work()
    assert not names_in(folders.outbox / "pacs")


def test_what_was_sent_is_remembered_for_a_year_and_while_the_study_is_here(folders: NodeFolders) -> None:
    Outbox(folders, "pacs", PATIENCE).deliver(Destination())
    old = time.time() - 366 * 86_400
    study = put_waiting(folders, "1.9", "1.0")
    os.utime(study / INSTANCES, (old, old))
    (folders.arrived / "pacs" / "1.1.dcm").touch()
    os.utime(folders.arrived / "pacs" / "1.1.dcm", (old + 1, old + 1))
    remove_old(folders, 0)
    assert names_in(folders.arrived / "pacs") == ["1.1.dcm", "1.2.dcm"]
    os.utime(study / INSTANCES)
    remove_old(folders, 0)
    assert names_in(folders.arrived / "pacs") == ["1.2.dcm"]


def test_what_is_refused_for_long_is_set_aside(folders: NodeFolders) -> None:
    clock, destination = clock_of(folders), Destination()
    destination.problem = "status 0xA900"
    clock.now += 2 * PATIENCE.give_up_seconds  # the machine was off
    Outbox(folders, "pacs", PATIENCE, clock).deliver(destination)
    assert not names_in(folders.unsent / "pacs")
    clock.now += PATIENCE.give_up_seconds
    Outbox(folders, "pacs", PATIENCE, clock).deliver(destination)
    assert read_note(folders.unsent / "pacs" / "1.2.json") == {"reason": "status 0xA900"}
    assert not names_in(folders.outbox / "pacs")


def test_the_destination_has_each_result_after_a_kill_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(100):
        folders = filled(tmp_path / str(step))
        destination = Destination()
        with killed_at(step, monkeypatch) as steps:
            with contextlib.suppress(Killed):
                Outbox(folders, "pacs", PATIENCE).deliver(destination)
            done = steps()
        Outbox(folders, "pacs", PATIENCE).deliver(destination)
        assert set(destination.got) == {"1.1", "1.2"}
        assert len(destination.got) <= 3  # at most the one that was under way, again
        assert names_in(folders.sent / "pacs") == ["1.1.dcm", "1.2.dcm"]
        if done < step:
            assert step > 1
            return
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("served", [[], ["archive"]], ids=["shadow", "gone"])
def test_what_waits_for_nobody_is_sent_only_if_somebody_asks_for_it(folders: NodeFolders, served: list[str]) -> None:
    destination = Destination()
    destination.down = True
    Outbox(folders, "pacs", PATIENCE).deliver(destination)
    destination.down = False
    set_aside_unserved(folders, served)
    assert not names_in(folders.outbox / "pacs")
    assert read_note(folders.unsent / "pacs" / "1.1.json") == {"reason": "node.yaml sends nothing to this destination"}
    assert retry_unsent(folders, served) == 0 and len(names_in(folders.unsent / "pacs")) == 4
    outbox = Outbox(folders, "pacs", PATIENCE)  # it is served again
    set_aside_unserved(folders, ["pacs"])
    outbox.deliver(destination)
    assert not destination.got
    assert retry_unsent(folders, ["pacs"]) == 2
    outbox.deliver(destination)
    assert sorted(destination.got) == ["1.1", "1.2"] and not names_in(folders.unsent / "pacs")


def test_what_is_served_is_left_alone(folders: NodeFolders) -> None:
    (folders.outbox / "notes.txt").write_text("mine")
    set_aside_unserved(folders, ["pacs"])
    assert names_in(folders.outbox / "pacs") == ["1.1.dcm", "1.2.dcm"] and not names_in(folders.unsent)


def test_what_a_killed_process_left_half_written_is_removed(folders: NodeFolders) -> None:
    halves = [home / f".1.1.json.{'0' * 12}.part" for home in (folders.root, folders.outbox / "pacs")]
    for half in halves:
        half.write_text("{")
    with folders.locked():
        assert not [half for half in halves if half.exists()]
    assert names_in(folders.outbox / "pacs") == ["1.1.dcm", "1.2.dcm"]
