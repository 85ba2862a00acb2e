from __future__ import annotations

import socket
from pathlib import Path

import pytest

from common.errors import DamagedFileError
from server.cli import main
from server.run_store.live_status import NetworkStatus, write_network_status
from server.run_store.locks import only_start
from server.tracking.prometheus import RunMetrics
from tests import tiny
from tests.e2e.commands import call
from tests.server.tracking.growing_run import GrowingRun


def values(metrics: RunMetrics) -> dict[str, float]:
    """Every value by its name and labels, as Prometheus writes them."""
    found = {}
    for metric in metrics.collect():
        for sample in metric.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            found[sample.name.removeprefix("fedvox_server_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_a_run_from_before_its_beginning_to_its_end(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run")
    metrics = RunMetrics(run.path)
    assert values(metrics) == {"up": 0.0}
    run.begin()
    run.lines[1]["sites"]["south"] |= {"status": "refused", "reason": "too-long"}
    run.commit(1)
    run.leave_uncommitted(2)
    assert values(metrics)["rounds_total"] == 1
    run.drop_uncommitted()
    run.commit(2)
    found = values(metrics)
    assert found["rounds_planned"] == 3
    assert found["rounds_total"] == 2
    assert found["round_seconds"] == run.lines[1]["seconds"]
    assert found["mean_dice"] == run.lines[1]["mean_dice"]
    assert found["site_counted{site=north}"] == 1
    assert found["site_counted{site=south}"] == 0
    assert found["refused_updates_total{site=south,reason=too-long}"] == 1
    run.commit(3)
    found = values(metrics)
    assert found["site_counted{site=south}"] == 1
    assert found["refused_updates_total{site=south,reason=too-long}"] == 1
    assert found == values(RunMetrics(run.path)), "a new process counts the same"
    with only_start(run.path):
        assert values(metrics)["up"] == 1


def test_processes_and_sites_of_a_network(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    sites = {
        "north": {"connected": True, "step": 3, "steps": 40, "status": None},
        "south": {"connected": False, "step": None, "steps": None, "status": None},
    }
    processes = {"gateway": {"state": "ready", "restarts": 2}}
    refused = {"(unknown)": {"no-certificate": 7}}
    status = NetworkStatus(True, "", "round 1 of 3", "localhost:9443", processes, sites, 1, refused)
    with only_start(run.path):
        write_network_status(run.path, status)
        found = values(RunMetrics(run.path))
    assert found["site_connected{site=north}"] == 1
    assert found["site_step{site=north}"] == 3
    assert found["site_steps{site=north}"] == 40
    assert found["site_connected{site=south}"] == 0
    assert "site_step{site=south}" not in found
    assert found["process_ready{process=gateway}"] == 1
    assert found["process_restarts_total{process=gateway}"] == 2
    assert found["refused_requests_total{site=(unknown),reason=no-certificate}"] == 7
    stopped = values(RunMetrics(run.path))
    assert stopped["site_connected{site=north}"] == stopped["process_ready{process=gateway}"] == 0


def test_a_damaged_state_is_an_error(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    (run.path / "state.json").write_text("{}")
    with pytest.raises(DamagedFileError):
        values(RunMetrics(run.path))


def test_an_address_that_cannot_be_used_stops_before_the_run_begins(tmp_path: Path) -> None:
    federation, out = tiny.write_federation(tmp_path), tmp_path / "run"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call(main, "simulate", federation, "--out", out, "--metrics", port)
        assert done.returncode == 1
        assert f"--metrics 127.0.0.1:{port}: cannot listen" in done.stderr
    for address in ("here", "0", "70000", "example.org:9464", "192.0.2.1:x"):
        done = call(main, "simulate", federation, "--out", out, "--metrics", address)
        assert done.returncode == 2
        assert "for example 127.0.0.1:9464" in done.stderr
    done = call(main, "simulate", federation, "--out", out, "--metrics", port, "--sweep", "rounds=1,2")
    assert done.returncode == 2
    assert not out.exists()
