"""What a health check finds, in state folders as processes leave them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.health import illness
from client.site_state import StateFolder, site_status, write_json
from common.health import is_serving
from common.supervise import free_port

PID = 4711


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    """A state folder that a process holds."""
    made = StateFolder(tmp_path / "state")
    with made.locked():
        yield made


def running(folder: StateFolder, role: str, health: str = "", **runner: Any) -> None:
    names = {"site": ("supernode", "runner")}.get(role, (role,))
    processes = {name: {"state": "ready", "pid": PID} for name in names}
    write_json(folder.status, {"role": role, "health": health, "processes": processes})
    if runner:
        write_json(folder.runner, {"pid": PID, "time": time.time(), "sign_by": time.time() + 180} | runner)


def test_a_runner_that_waits_is_well(folder: StateFolder) -> None:
    running(folder, "runner", state="waiting")
    assert illness(folder) == ""
    status = site_status(folder)
    assert status["ready"] and status["connected"] is None, "it cannot know of the server"


def test_a_runner_without_supernode_is_well_and_not_ready(folder: StateFolder) -> None:
    running(folder, "runner", state="away")
    assert illness(folder) == ""
    assert not site_status(folder)["ready"]


@pytest.mark.parametrize(
    ("runner", "text"),
    [
        ({"state": "waiting", "sign_by": time.time() - 1}, "no sign of life"),
        ({"state": "waiting", "problem": "scan.nii.gz: is damaged"}, "scan.nii.gz"),
        ({"state": "refused"}, "different secrets"),
    ],
)
def test_a_runner_that_hangs_or_cannot_work_is_ill(folder: StateFolder, runner: dict[str, Any], text: str) -> None:
    running(folder, "runner", **runner)
    assert text in illness(folder)


def test_a_process_that_died_is_told(folder: StateFolder) -> None:
    write_json(folder.status, {"role": "runner", "processes": {"runner": {"state": "restarting", "pid": None}}})
    assert "runner is not running" in illness(folder)


def test_a_folder_that_nobody_holds_is_told(tmp_path: Path) -> None:
    running(StateFolder(tmp_path), "runner", state="waiting")
    assert "nothing runs" in illness(StateFolder(tmp_path))


def test_supernode_is_connected_while_the_server_answers_or_the_runner_works(folder: StateFolder) -> None:
    running(folder, "supernode")
    assert site_status(folder)["connected"] is False
    assert illness(folder) == "", "that the server is away is nothing that a new start would mend"
    folder.busy.touch()
    assert site_status(folder)["ready"]
    folder.busy.unlink()
    folder.contact.touch()
    assert site_status(folder)["ready"]


def test_supernode_must_answer_where_it_tells_its_health(folder: StateFolder) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        running(folder, "supernode", address)
        assert illness(folder) == ""
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert "does not answer" in illness(folder)
    finally:
        server.stop(None).wait()
    assert not is_serving(f"127.0.0.1:{free_port()}", timeout=1)
