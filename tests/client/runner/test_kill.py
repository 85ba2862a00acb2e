"""Killed at its operations on files, a runner answers each task once, with the same bytes, and pays once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("places", "least"), [("each-kind", 30), pytest.param("every", 150, marks=pytest.mark.long)])
def test_killed_before_any_operation_a_runner_goes_on(tmp_path: Path, places: str, least: int) -> None:
    command = [sys.executable, "-m", "tests.client.runner.kill_points", str(tmp_path), places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > least
