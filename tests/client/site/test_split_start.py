"""``fedvox-client runner`` as a person or a container starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.state_folder import site_status
from tests.client.runner.process import wait_for
from tests.client.runner.site import RunnerSite

CLIENT = [sys.executable, "-m", "client.cli"]


def command(site: RunnerSite, *options: str) -> list[str]:
    found = [*CLIENT, "runner", "--kit", str(site.kit), "--data", str(site.data), "--state", str(site.state.path)]
    return [*found, "--shared", str(site.shared.path), "--ledger", str(site.ledger), "--no-cache", *options]


@pytest.fixture
def site(tmp_path: Path) -> RunnerSite:
    return RunnerSite(tmp_path)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_says_when_it_is_ready_and_takes_its_runner_along(site: RunnerSite) -> None:
    starter = subprocess.Popen(command(site), env=site.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout is not None
        lines = []
        for line in starter.stdout:
            lines.append(line.rstrip())
            if line.startswith("ready for tasks"):
                break
        assert lines[-1] == "ready for tasks: site north of tiny-network"
        for name in ("software", "kit", "key", "shared", "isolation", "data", "disk", "device", "approval"):
            assert any(f" {name}:" in line for line in lines), name
        status = site_status(site.state)
        assert (status["role"], status["ready"], status["connected"]) == ("runner", True, None)
        runner = status["runner"]["pid"]
        for options, text in (
            (["status", "--kit", str(site.kit)], "runner: waiting for a task"),
            (["status", "--kit", str(site.kit)], status["runner"]["network"]),
            (["health"], "healthy"),
        ):
            shown = subprocess.run(
                [*CLIENT, *options, "--state", str(site.state.path)],
                env=site.environment,
                capture_output=True,
                text=True,
            )
            assert shown.returncode == 0 and text in shown.stdout
        starter.kill()
        starter.wait()
        wait_for(lambda: not is_alive(runner), "the runner's end after its parent's")
    finally:
        starter.kill()


def test_sigterm_ends_both(site: RunnerSite) -> None:
    starter = subprocess.Popen(command(site), env=site.environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: site_status(site.state).get("runner", {}).get("state") == "waiting", "a runner that waits")
        runner = site_status(site.state)["runner"]["pid"]
        os.kill(starter.pid, signal.SIGTERM)
        assert starter.wait(20) == 0
        assert not is_alive(runner)
        assert site_status(site.state) == {"running": False}
    finally:
        starter.kill()


def test_a_shared_folder_that_cannot_be_used_stops_the_start(site: RunnerSite) -> None:
    (site.folder / "file").touch()
    options = command(site)
    options[options.index(str(site.shared.path))] = str(site.folder / "file" / "shared")
    done = subprocess.run(options, env=site.environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be made" in done.stdout and "fix first: shared" in done.stderr


def test_status_for_machines_says_whether_it_is_isolated(site: RunnerSite) -> None:
    with site.state.locked():
        site.state.runner.write_text(json.dumps({"pid": 1, "state": "waiting", "isolated": True, "network": "none"}))
        site.state.status.write_text(json.dumps({"role": "runner", "processes": {"runner": {"pid": 1}}}))
        done = subprocess.run(
            [*CLIENT, "status", "--json", "--kit", str(site.kit), "--state", str(site.state.path)],
            env=site.environment,
            capture_output=True,
            text=True,
        )
    assert json.loads(done.stdout)["runner"]["isolated"] is True
