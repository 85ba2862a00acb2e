"""Killed at every operation on files, a runner answers each task once, with the same bytes, and pays once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_killed_before_any_operation_a_runner_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.client.runner.kill_points", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > 80
