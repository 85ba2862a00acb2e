"""What a health check finds, in state folders as processes leave them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.site.health import health_problem
from client.state_folder import StateFolder, site_status, write_json

PID = 4711


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    """A state folder that a process holds."""
    made = StateFolder(tmp_path / "state")
    with made.locked():
        yield made


def running(folder: StateFolder, role: str, **runner: Any) -> None:
    names = {"site": ("courier", "runner")}.get(role, (role,))
    processes = {name: {"state": "ready", "pid": PID} for name in names}
    write_json(folder.status, {"role": role, "processes": processes})
    if runner:
        write_json(folder.runner, {"pid": PID, "time": time.time(), "sign_by": time.time() + 180} | runner)


def test_a_runner_that_waits_is_healthy(folder: StateFolder) -> None:
    running(folder, "runner", state="waiting")
    assert health_problem(folder) == ""
    status = site_status(folder)
    assert status["ready"] and status["connected"] is None, "it cannot know of the server"


@pytest.mark.parametrize(
    ("runner", "text"),
    [
        ({"state": "waiting", "sign_by": time.time() - 1}, "no sign of life"),
        ({"state": "waiting", "problem": "scan.nii.gz: is damaged"}, "scan.nii.gz"),
    ],
)
def test_a_runner_that_hangs_or_cannot_work_is_not_healthy(
    folder: StateFolder, runner: dict[str, Any], text: str
) -> None:
    running(folder, "runner", **runner)
    assert text in health_problem(folder)


def test_a_process_that_died_is_told(folder: StateFolder) -> None:
    write_json(folder.status, {"role": "runner", "processes": {"runner": {"state": "restarting", "pid": None}}})
    assert "runner is not running" in health_problem(folder)


def test_a_folder_that_nobody_holds_is_told(tmp_path: Path) -> None:
    running(StateFolder(tmp_path), "runner", state="waiting")
    assert "nothing runs" in health_problem(StateFolder(tmp_path))


def test_a_courier_is_connected_while_the_server_answers(folder: StateFolder) -> None:
    running(folder, "courier")
    assert site_status(folder)["connected"] is False
    assert health_problem(folder) == "", "that the server is away is nothing that a new start would mend"
    folder.contact.touch()
    assert site_status(folder)["ready"]
    long_ago = time.time() - 60
    os.utime(folder.contact, (long_ago, long_ago))
    assert not site_status(folder)["ready"]


def test_a_site_is_ready_when_both_halves_are(folder: StateFolder) -> None:
    running(folder, "site", state="preparing data")
    folder.contact.touch()
    assert not site_status(folder)["ready"]
    running(folder, "site", state="waiting")
    assert site_status(folder)["ready"]
    assert health_problem(folder) == ""
