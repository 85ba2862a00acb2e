"""Killed at every operation on files, a run always ends as if nothing had happened."""

import subprocess
import sys
from pathlib import Path


def test_killed_before_any_operation_a_run_ends_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.server.kill_points", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > 50
