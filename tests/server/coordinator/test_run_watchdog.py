"""The server's one run at a real SuperLink, also when an answer of SuperLink's is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from common.audit import AuditLog, read_entries
from common.system.supervisor import Supervisor, free_port
from server.coordinator.app_bundle import build_bundle
from server.coordinator.control_client import ControlError, SuperLinkControl
from server.coordinator.run_watchdog import FlowerRun
from server.coordinator.startup import flower_processes, make_run_folder
from server.flower import ControlHttpClient, ListRunsRequest, RuntimeVersionHttpInterceptor, Status
from tests import tiny
from tests.e2e.network_federation import wait_for
from tests.e2e.relay import relay


@contextmanager
def superlink(run: Path) -> Iterator[int]:
    """SuperLink alone, without what starts the server app; its port."""
    make_run_folder(run)
    port = free_port()
    supervisor = Supervisor(flower_processes(run, port, "")[:1], lambda name, event: None)
    supervisor.start()

    def is_ready() -> bool:
        supervisor.poll()
        return bool(supervisor.states()["superlink"]["state"] == "ready")

    try:
        wait_for(is_ready, 120, "SuperLink")
        yield port
    finally:
        supervisor.stop(3)


def open_runs(port: int) -> list[int]:
    """All runs, and which of them are not over."""
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    with ControlHttpClient.from_server_address(f"127.0.0.1:{port}", True, None, [version]) as client:
        runs = client.ListRuns(ListRunsRequest(limit=100)).run_dict
    return [number for number, run in runs.items() if run.status.status != Status.FINISHED]


def test_a_run_whose_number_is_lost_does_not_stay_beside_the_next(tmp_path: Path) -> None:
    run, said = tmp_path / "run", list[str]()
    with superlink(run) as port, relay(port) as line, closing(SuperLinkControl(line.port)) as control:
        watched = FlowerRun(run, build_bundle(tiny.federation()), AuditLog(run / "audit.jsonl"), said.append)
        before = line.sent
        control.stop_all()
        # The next call is the same; the one after it submits the run.
        line.stall_after(line.sent - before + 1, answers=True)
        cut = threading.Thread(target=lambda: line.stalled.wait(60) and line.close())
        cut.start()
        with pytest.raises(ControlError, match="could not start the run"):
            watched.tick(control)
        cut.join()
        wait_for(lambda: open_runs(port), 60, "the run of which nobody knows")
        [lost] = open_runs(port)
        line.open()
        watched.tick(control)
        assert open_runs(port) == [watched.flower_run] != [lost]
        watched.tick(control)
        assert open_runs(port) == [watched.flower_run]
        submitted = [entry.details for entry in read_entries(run / "audit.jsonl") if entry.event == "run_submitted"]
        assert submitted == [{"flower_run": str(watched.flower_run)}]
