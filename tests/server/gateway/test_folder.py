"""The folder between gateway, server app and ``start``: whatever is missing or damaged in it, nobody falls over it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import OutputError
from common.protocol.messages import Heartbeat
from server.run_store.gateway_folder import GatewayFolder, HandedOut, OpenTask

NAME, MODEL, MESSAGE = "ab" * 16, "cd" * 32, "ef" * 32
TASK = OpenTask(NAME, MODEL, "checkpoints/round_0001.safetensors", 96, 16, 16)
BEAT = Heartbeat((NAME, "01" * 16), NAME, 3, 40)


@pytest.fixture
def folder(tmp_path: Path) -> GatewayFolder:
    made = GatewayFolder(tmp_path)
    made.make()
    return made


def test_it_is_its_owners_alone(folder: GatewayFolder) -> None:
    for name in ("sites", "messages", "replies", "bells"):
        assert (folder.path / name).stat().st_mode & 0o077 == 0
    folder.make()


def test_one_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "gateway").write_text("")
    with pytest.raises(OutputError, match="gateway"):
        GatewayFolder(tmp_path).make()


def test_one_that_cannot_be_written_is_named(folder: GatewayFolder) -> None:
    folder.remove()
    folder.path.write_text("")
    with pytest.raises(OutputError, match="task"):
        folder.open_task("a", TASK)
    with pytest.raises(OutputError, match="heartbeat"):
        folder.note_heartbeat("a", BEAT)


def test_nothing_is_said_by_an_empty_folder(tmp_path: Path) -> None:
    """Also by none at all: each of the programs may be the first."""
    folder = GatewayFolder(tmp_path)
    assert folder.superlink() is None
    assert folder.open_tasks("a") == []
    assert folder.sites() == []
    assert folder.heartbeat("a") is None
    assert folder.handed_out(MESSAGE) is None
    assert not folder.has_reply(MESSAGE)
    folder.ring(7)
    folder.close_tasks()
    folder.forget_message(MESSAGE)
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_port_of_superlink_returns(folder: GatewayFolder) -> None:
    folder.set_superlink(39_123)
    folder.set_superlink(39_124)
    assert folder.superlink() == 39_124


def test_a_task_is_open_for_its_site_until_it_is_closed(folder: GatewayFolder) -> None:
    other = replace(TASK, name="01" * 16, update_bytes=0)
    folder.open_task("a", TASK)
    folder.open_task("a", other)
    folder.open_task("b", TASK)
    assert sorted(folder.open_tasks("a"), key=lambda task: task.name) == [other, TASK]
    assert folder.open_tasks("c") == []
    folder.close_tasks(keep=frozenset([other.name]))
    assert (folder.open_tasks("a"), folder.open_tasks("b")) == ([other], [])
    folder.close_tasks()
    assert folder.open_tasks("a") == []
    assert folder.sites() == ["a", "b"]


def test_a_task_that_is_opened_again_is_the_new_one(folder: GatewayFolder) -> None:
    folder.open_task("a", TASK)
    folder.open_task("a", replace(TASK, offset=104))
    assert folder.open_tasks("a") == [replace(TASK, offset=104)]


def test_a_heartbeat_returns_with_its_time(folder: GatewayFolder) -> None:
    before = time.time()
    folder.note_heartbeat("a", Heartbeat())
    folder.note_heartbeat("a", BEAT)
    last = folder.heartbeat("a")
    assert last is not None
    assert last.beat == BEAT
    assert before <= last.time <= time.time()
    assert folder.heartbeat("b") is None


def test_a_message_is_its_receivers_until_it_is_forgotten(folder: GatewayFolder) -> None:
    folder.note_handed_out(MESSAGE, 2**63 + 11)
    assert folder.handed_out(MESSAGE) == HandedOut(2**63 + 11)
    assert not folder.has_reply(MESSAGE)
    folder.note_reply(MESSAGE)
    assert folder.has_reply(MESSAGE)
    folder.forget_message(MESSAGE)
    assert folder.handed_out(MESSAGE) is None
    assert not folder.has_reply(MESSAGE)
    folder.forget_message(MESSAGE)


def test_a_bell_says_that_it_was_rung(folder: GatewayFolder) -> None:
    folder.ring(7)
    first = folder.bell(7).stat().st_mtime_ns
    deadline = time.monotonic() + 5
    while folder.bell(7).stat().st_mtime_ns == first:
        assert time.monotonic() < deadline
        folder.ring(7)
    assert not folder.bell(8).exists()


ODD_NAMES = ["", ".", "..", "a/b", "../a", "/etc", "A", "a b", "a\n", "ä", ".hidden", "x" * 300]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_no_sites_name_names_no_file(folder: GatewayFolder, name: str) -> None:
    ways: list[Callable[[], object]] = [
        lambda: folder.open_task(name, TASK),
        lambda: folder.open_tasks(name),
        lambda: folder.updates(name),
        lambda: folder.note_heartbeat(name, BEAT),
        lambda: folder.heartbeat(name),
    ]
    before = sorted(folder.run.rglob("*"))
    for way in ways:
        with pytest.raises(ValueError, match="site"):
            way()
    assert sorted(folder.run.rglob("*")) == before


@pytest.mark.parametrize("message", ["", "..", "../../state.json", MESSAGE[:-1], MESSAGE + "\n", MESSAGE.upper()])
def test_what_is_no_message_names_no_file(folder: GatewayFolder, message: str) -> None:
    (folder.run / "state.json").write_text("{}")
    ways: list[Callable[[], object]] = [
        lambda: folder.note_handed_out(message, 7),
        lambda: folder.handed_out(message),
        lambda: folder.note_reply(message),
        lambda: folder.has_reply(message),
        lambda: folder.forget_message(message),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="message"):
            way()
    assert (folder.run / "state.json").exists()


DAMAGED = ["", "{", "[]", "null", "3", '"text"', "\xff", "{}", '{"port": "80"}', '{"node": "7"}', '{"beat": 3}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_as_good_as_none(folder: GatewayFolder, content: str) -> None:
    """Nothing here is flushed to disk, so after a loss of power any file may hold anything."""
    folder.open_task("a", TASK)
    folder.note_heartbeat("a", BEAT)
    folder.note_handed_out(MESSAGE, 7)
    folder.set_superlink(80)
    for file in folder.path.rglob("*"):
        if file.is_file():
            file.write_bytes(content.encode("latin-1"))
    assert folder.open_tasks("a") == []
    assert folder.heartbeat("a") is None
    assert folder.handed_out(MESSAGE) is None
    assert folder.superlink() is None


CHANGES = [{"name": "x"}, {"model": "x"}, {"model": "../../etc/passwd"}, {"more": 1}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_task_of_another_form_is_none(folder: GatewayFolder, change: dict[str, object]) -> None:
    folder.open_task("a", TASK)
    [file] = folder.path.glob("sites/a/tasks/*.json")
    file.write_text(json.dumps(vars(TASK) | change))
    assert folder.open_tasks("a") == []


@given(st.dictionaries(st.sampled_from(["time", "beat", "more"]), st.none() | st.integers() | st.lists(st.text())))
def test_whatever_a_heartbeat_file_holds_nobody_falls_over_it(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    folder = GatewayFolder(tmp_path_factory.mktemp("run"))
    folder.note_heartbeat("a", BEAT)
    (folder.path / "sites" / "a" / "heartbeat.json").write_text(json.dumps(content))
    assert folder.heartbeat("a") is None


def test_a_stranger_beside_the_sites_is_none(folder: GatewayFolder) -> None:
    folder.open_task("a", TASK)
    (folder.path / "sites" / "Lost+Found").mkdir()
    assert folder.sites() == ["a"]


def test_who_reads_never_meets_half_a_file(folder: GatewayFolder) -> None:
    """One writes, another reads: as gateway and server app do."""
    ended = threading.Event()
    beats = [Heartbeat(tuple(f"{number:032x}" for number in range(count)), "", 0, 0) for count in range(16)]

    def write() -> None:
        for _ in range(20):
            for beat in beats:
                folder.note_heartbeat("a", beat)
        ended.set()

    folder.note_heartbeat("a", beats[0])
    writer = threading.Thread(target=write)
    writer.start()
    while not ended.is_set():
        last = folder.heartbeat("a")
        assert last is not None
        assert last.beat in beats
    writer.join()
    assert [path.name for path in (folder.path / "sites" / "a").iterdir()] == ["heartbeat.json"]


def test_the_end_of_a_run_leaves_nothing(folder: GatewayFolder) -> None:
    folder.open_task("a", TASK)
    folder.updates("a").mkdir()
    (folder.updates("a") / MODEL).write_bytes(b"update")
    folder.note_handed_out(MESSAGE, 7)
    folder.remove()
    assert not folder.path.exists()
    folder.remove()
