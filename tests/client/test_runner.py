"""What the runner is made of; the runner itself is tested with real processes in tests/e2e/test_runner.py."""

from __future__ import annotations

import ast
import inspect
import stat
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.supernode import start_client_internal

from client.site_runner import RunnerStatus
from client.site_state import read_json
from client.supernode import Pace
from client.task_file import OpenTask, Stage, TaskFile
from common.flower import REQUIRED_FLOWER, FlowerVersionError, check_flower_version, flower_environment


def test_the_installed_flower_is_the_one_that_is_pinned() -> None:
    assert version("flwr") == REQUIRED_FLOWER == "1.41.0"
    check_flower_version()


@pytest.mark.parametrize("other", ["1.40.0", "1.41.1", "1.42.0", "2.0.0"])
def test_any_other_flower_is_refused_and_the_text_says_what_to_install(other: str) -> None:
    with pytest.raises(FlowerVersionError, match=rf"Flower {other} is installed.*pip install flwr==1\.41\.0"):
        check_flower_version(other)


def test_flowers_programs_phone_nobody(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_HOME"] == str(tmp_path)


def test_supernode_uses_of_time_only_what_pace_replaces() -> None:
    tree = ast.parse(inspect.getsource(start_client_internal))
    used = [
        (node.func.attr, [argument.value for argument in node.args if isinstance(argument, ast.Constant)])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "time"
    ]
    assert sorted(used) == [("sleep", [0.5]), ("sleep", [0.5]), ("sleep", [3])]
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "time"]
    assert len(names) == len(used), "time is used in another way too"


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_pauses_start_short_grow_with_the_wait_and_never_exceed_flowers_own() -> None:
    clock = Clock()
    pace = Pace(clock=clock.read, pause=clock.sleep)
    while clock.now < 1600:
        pace.sleep(3)
    assert clock.pauses[0] == 0.05
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == 3
    waited = 0.0
    for pause in clock.pauses:
        assert pause <= max(0.05, 0.02 * waited) + 1e-9, "a task waits at most a fiftieth longer than it must"
        waited += pause


def test_pauses_are_short_again_after_work() -> None:
    clock = Clock()
    pace = Pace(clock=clock.read, pause=clock.sleep)
    for _ in range(200):
        pace.sleep(3)
    assert clock.pauses[-1] > 0.5
    pace.sleep(0.5)
    assert clock.pauses[-1] == 0.02
    pace.sleep(3)
    assert clock.pauses[-1] == 0.05


def test_pace_tells_of_every_answer_of_the_server_and_of_nothing_else() -> None:
    clock, contacts = Clock(), []
    pace = Pace(lambda: contacts.append(clock.now), clock.read, clock.sleep)
    pace.sleep(3)
    pace.sleep(0.5)
    pace.sleep(3)
    assert len(contacts) == 2


def test_a_task_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    file = TaskFile(tmp_path / "task.json")
    assert file.load() is None
    task = OpenTask(Stage.WORKING, "token", b"\x00\xffcontext", b"message", b"")
    file.save(task)
    assert file.load() == task
    file.clear()
    assert file.load() is None and list(tmp_path.iterdir()) == []


def test_only_the_owner_can_read_a_task_whatever_the_umask_and_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.touch(mode=0o644)
    TaskFile(path).save(OpenTask(Stage.CLAIMED, "token"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"stage": "claimed"}', '{"stage": "no such", "token": "t"}'])
def test_a_damaged_note_counts_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "task.json"
    path.write_text(damage)
    assert TaskFile(path).load() is None


def test_status_writes_changes_of_state_at_once_and_steps_now_and_then(tmp_path: Path) -> None:
    status = RunnerStatus(tmp_path / "runner.json")
    status.state("working")
    assert read_json(tmp_path / "runner.json")["state"] == "working"
    for step in range(100):
        status.site_step(3, "north", step, 100, 0.5)
    assert read_json(tmp_path / "runner.json").get("step", 0) < 99, "a hundred steps in no time are not all written"
    status.state("waiting")
    assert read_json(tmp_path / "runner.json") | {"time": 0, "sign_by": 0} == {
        "state": "waiting",
        "round": 3,
        "step": 99,
        "steps": 100,
        "time": 0,
        "sign_by": 0,
        "pid": read_json(tmp_path / "runner.json")["pid"],
    }
