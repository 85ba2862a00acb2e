"""A site whose clock is wrong: what the server does about it, and whether the site is told before."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.tools import program
from tests.e2e.network_federation import CLIENT, ENVIRONMENT, NICE, Federation, federation, wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

TEN_MINUTES = 600
PATIENCE_SECONDS = 240


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
    environment = waiting.environment | {"FEDVOX_CACHE": str(waiting.folder / "cache")}
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
    done = subprocess.run(command, env=waiting.environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "is this clock right?" in done.stdout or "behind the server's" in done.stdout


@contextmanager
def courier(made: Federation, seconds: float) -> Iterator[Path]:
    """A courier that nobody has looked after, with a clock of its own; its log.

    The clock that counts seconds stays as it is, for what waits; only the time of day is another one.
    """
    folder = made.folder / f"courier{seconds:+g}"
    folder.mkdir()
    command = [*NICE, *off_by(seconds), sys.executable, "-m", "client.courier", "--kit", str(made.kits / "sites/east")]
    command += ["--state", str(folder / "state"), "--shared", str(folder / "shared")]
    (folder / "state").mkdir()
    log = folder / "courier.log"
    with log.open("wb") as file:
        environment = ENVIRONMENT | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.parametrize("seconds", [TEN_MINUTES, -TEN_MINUTES, 10])
def test_the_server_lets_nobody_in_whose_signature_is_of_another_time(waiting: Federation, seconds: float) -> None:
    with courier(waiting, seconds) as log:
        wait_for(lambda: "401" in log.read_text(), PATIENCE_SECONDS, "a refusal")
        assert "connected to" not in log.read_text()
    assert "is connected" not in waiting.log("server")


def test_a_clock_that_is_a_minute_slow_is_accepted(waiting: Federation) -> None:
    with courier(waiting, -60) as log:
        wait_for(lambda: "connected to" in log.read_text(), PATIENCE_SECONDS, "a site with a slow clock")
        wait_for(lambda: "east is connected" in waiting.log("server"), PATIENCE_SECONDS, "the same at the server")
