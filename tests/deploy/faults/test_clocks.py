"""A site whose clock is wrong: what the server does about it, and whether the site is told before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.supernode import STATE_VARIABLE
from common.flower import flower_environment
from common.supervise import free_port
from tests.deploy.tools import program
from tests.e2e.network_federation import CLIENT, ENVIRONMENT, NICE, Federation, federation, wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.usefixtures("nginx")]

TEN_MINUTES = 600


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("clocks"), ("east", "north")) as made:
        made.start_server()
        wait_for(made.is_up, 120, "a server that waits for sites")
        yield made


def off_by(seconds: float) -> list[str]:
    """What to put before a command whose clock is to be ahead (or, below zero, behind)."""
    return [program("faketime", "faketime"), "-f", f"{seconds:+g}s"]


@pytest.mark.parametrize(("seconds", "severity"), [(TEN_MINUTES, "error"), (10, "error"), (2, "ok")])
def test_a_site_is_told_of_its_clock_before_it_starts(waiting: Federation, seconds: int, severity: str) -> None:
    kit = waiting.kits / "sites/east"
    command = [*NICE, *off_by(seconds), *CLIENT, "preflight", "--kit", str(kit), "--data", str(waiting.data("east"))]
    environment = ENVIRONMENT | {"FEDVOX_CACHE": str(waiting.folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    lines = [line for line in done.stdout.splitlines() if line.split()[1:2] == ["clock:"]]
    assert len(lines) == 1, done.stdout + done.stderr
    [line] = lines
    assert line.startswith(severity), line
    assert severity == "ok" or "ahead of" in line
    assert done.returncode == int(severity == "error")


def test_a_clock_from_before_the_federation_began_is_an_error(waiting: Federation) -> None:
    kit = waiting.kits / "sites/east"
    command = [*NICE, *off_by(-TEN_MINUTES), *CLIENT, "preflight", "--kit", str(kit), "--no-cache"]
    command += ["--data", str(waiting.data("east"))]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "is this clock right?" in done.stdout or "behind the server's" in done.stdout


def supernode(made: Federation, seconds: float) -> subprocess.Popen[str]:
    """A SuperNode that nobody has looked after, with a clock of its own."""
    kit, state = made.kits / "sites/east", made.folder / f"state{seconds:+g}"
    state.mkdir(exist_ok=True)
    command = [*NICE, sys.executable, "-m", "tests.deploy.faults.wrong_clock", str(seconds)]
    command += ["--superlink", f"127.0.0.1:{made.port}", "--root-certificates", str(kit / "ca.crt")]
    command += ["--auth-supernode-private-key", str(kit / "node.key"), "--port", str(free_port())]
    command += ["--isolation", "process"]
    environment = flower_environment(state / "flower") | {
        STATE_VARIABLE: str(state),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return subprocess.Popen(command, env=environment | {"NO_COLOR": "1"}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, cwd=Path.cwd())  # fmt: skip


def refusals(made: Federation) -> int:
    return made.refused_requests().count("401")


@pytest.mark.parametrize("seconds", [TEN_MINUTES, -TEN_MINUTES, 10])
def test_the_server_lets_nobody_in_whose_signature_is_of_another_time(waiting: Federation, seconds: float) -> None:
    before = refusals(waiting)
    process = supernode(waiting, seconds)
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert refusals(waiting) > before, output
    assert "is connected" not in waiting.log("server")


def test_a_clock_that_is_a_minute_slow_is_accepted(waiting: Federation) -> None:
    process = supernode(waiting, -60)
    try:
        wait_for(lambda: "east is connected" in waiting.log("server"), 240, "a site with a slow clock")
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
