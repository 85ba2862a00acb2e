"""Killed at its operations on files, a run always ends as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("download", ["float32", "bfloat16"])
@pytest.mark.parametrize(("places", "least"), [("each-kind", 30), pytest.param("every", 150, marks=pytest.mark.long)])
def test_killed_before_any_operation_a_run_ends_the_same(
    tmp_path: Path, download: str, places: str, least: int
) -> None:
    """In float32 models are served out of the checkpoint; in bfloat16 they are files of their own."""
    command = [sys.executable, "-m", "tests.server.kill_points", str(tmp_path), download, places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > least
