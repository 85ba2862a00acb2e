"""Where the deployment's files are, and the programs that judge them: ``make test-deploy`` installs those."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def program(name: str, package: str) -> str:
    """The path of a program, beside Python or on the path; without it the test is skipped."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
    return shutil.which(name, path=beside) or pytest.skip(f"{name} is not installed ({package})")


def said(*command: str | Path) -> tuple[int, str]:
    """Exit status of a command, and all that it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr
