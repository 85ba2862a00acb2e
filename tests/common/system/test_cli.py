"""What both command lines share."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "client": lambda none: ["client.cli", "runner", f"--kit={none}", f"--data={none}", f"--shared={none}"],
    "server": lambda none: ["server.cli", "gateway", f"--kit={none}", f"--run={none}", "--listen=127.0.0.1:1"],
}


def failing(which: str, folder: Path, linger: float) -> subprocess.Popen[str]:
    command = [*COMMANDS[which](folder / "none"), f"--linger={linger}"]
    return subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("which", COMMANDS)
def test_who_lingers_tells_the_error_at_once_and_waits_until_told_to_stop(which: str, tmp_path: Path) -> None:
    with failing(which, tmp_path, 600) as process:
        assert process.stderr is not None
        assert "none" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (1, 2)
        assert process.stderr.read() == ""


def test_a_command_ends_with_its_error_after_it_has_lingered(tmp_path: Path) -> None:
    with failing("server", tmp_path, 0.5) as process:
        assert process.stderr is not None
        process.stderr.readline()
        told = time.monotonic()
        assert process.wait(60) in (1, 2)
        assert time.monotonic() - told > 0.4
