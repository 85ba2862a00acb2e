from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.cli import main
from client.runner.progress import RunnerStatus
from client.site.metrics import SiteMetrics
from client.state_folder import AUDIT_FILE, Role, StateFolder, write_json
from common.audit import AuditLog
from tests.e2e.commands import call

PREFIX = "fedvox_client_"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    """A state folder that a process holds."""
    made = StateFolder(tmp_path / "state")
    with made.locked():
        yield made


def running(folder: StateFolder, role: Role, pid: int, **runner: Any) -> None:
    process = {"state": "ready", "pid": pid, "restarts": 1, "since": time.time()}
    names = ("courier", "runner") if role == "site" else (role,)
    write_json(folder.status, {"role": role, "processes": dict.fromkeys(names, process)})
    if runner:
        write_json(folder.runner, {"pid": pid} | runner)


def values(metrics: SiteMetrics) -> dict[str, float]:
    """Every value by its name and labels, as Prometheus writes them."""
    found = {}
    for metric in metrics.collect():
        for sample in metric.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            found[sample.name.removeprefix(PREFIX) + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_a_site_that_trains(folder: StateFolder) -> None:
    memory = [2 * 2**30, 8 * 2**30]
    runner = {"state": "working", "round": 2, "step": 5, "steps": 40, "steps_done": 45}
    runner |= {"training_seconds": 9.0, "gpu_memory": memory}
    running(folder, "site", 4711, **runner)
    folder.contact.touch()
    found = values(SiteMetrics(folder))
    assert found["up"] == found["ready"] == found["connected"] == 1
    assert 0 <= found["contact_age_seconds"] < 15
    assert [found[name] for name in ("round", "round_step", "round_steps")] == [2, 5, 40]
    assert found["training_steps_total"] == 45
    assert found["training_seconds_total"] == 9
    assert found["gpu_memory_used_bytes"] == 2 * 2**30
    assert found["gpu_memory_size_bytes"] == 8 * 2**30
    assert found["process_restarts_total{process=courier}"] == 1
    assert found["problem"] == 0


def test_what_left_is_counted_as_the_audit_log_has_it(folder: StateFolder) -> None:
    running(folder, "site", 4711, state="waiting")
    metrics = SiteMetrics(folder)
    assert values(metrics)["rounds_total"] == 0
    log = AuditLog(folder.path / AUDIT_FILE)
    log.append("sent", run="r", round=0, bytes=200, sha256="a", fields={"train_examples": 3})
    for number in (1, 2, 2):
        log.append("sent", run="r", round=number, bytes=1000, sha256="b", update="c")
    log.append("task", run="r", round=3)
    log.append("sent", run="r", round=3, bytes=80, sha256="d", error="paused")
    found = values(metrics)
    assert found["rounds_total"] == 2
    assert found["sent_messages_total{kind=updates}"] == 3
    assert found["sent_bytes_total{kind=updates}"] == 3000
    assert found["sent_bytes_total{kind=declarations}"] == 200
    assert found["refused_tasks_total"] == 1
    with (folder.path / AUDIT_FILE).open("a") as file:
        file.write("no entry\n")
    assert "rounds_total" not in values(metrics)


def test_halves_tell_what_they_know(folder: StateFolder) -> None:
    running(folder, "runner", 4711, state="waiting", problem="scan.nii.gz: is damaged")
    found = values(SiteMetrics(folder))
    assert "connected" not in found
    assert found["problem"] == 1
    assert found["ready"] == 0
    assert not any("scan" in name for name in found)
    assert found["training_steps_total"] == found["training_seconds_total"] == 0
    running(folder, "courier", 4712)
    found = values(SiteMetrics(folder))
    assert found["connected"] == 0
    assert not any(name.startswith("training") for name in found), "that is the runner's to tell"


def test_a_site_that_does_not_run(tmp_path: Path) -> None:
    found = values(SiteMetrics(StateFolder(tmp_path / "none")))
    assert found["up"] == found["ready"] == 0


def test_steps_are_counted_over_all_rounds(folder: StateFolder) -> None:
    began = time.monotonic()
    status = RunnerStatus(folder.runner)
    for number in (1, 2):
        status.site_started(number, "north", 3)
        for step in (1, 2, 3):
            status.site_step(number, "north", step, 3, None)
    status.state("waiting")
    running(folder, "site", 0)
    content = json.loads(folder.runner.read_text())
    assert content["steps_done"] == 6
    assert 0 < content["training_seconds"] <= time.monotonic() - began
    assert "gpu_memory" not in content, "this machine has no GPU in use"


@pytest.mark.parametrize("command", ["start", "courier", "runner"])
def test_a_port_that_is_taken_stops_the_start(tmp_path: Path, command: str) -> None:
    options = ["--kit", tmp_path, "--state", tmp_path / "state"]
    options += [] if command == "courier" else ["--data", tmp_path]
    options += [] if command == "start" else ["--shared", tmp_path / "shared"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = call(main, command, *options, "--metrics", taken.getsockname()[1])
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert list(tmp_path.iterdir()) == []
