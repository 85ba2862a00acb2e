"""Killed at every operation on files, a run always ends as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("download", ["float32", "bfloat16"])
def test_killed_before_any_operation_a_run_ends_the_same(tmp_path: Path, download: str) -> None:
    """In float32 models are served out of the checkpoint; in bfloat16 they are files of their own."""
    command = [sys.executable, "-m", "tests.server.kill_points", str(tmp_path), download]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > 150
