"""Where the deployment's files are, and the programs that judge them: ``make test-deploy`` installs those."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""Where programs are looked for: beside Python, and where root's are."""


def cannot_run(reason: str) -> NoReturn:
    """Skips a test for want of something; fails it where everything must be there ($FEDVOX_REQUIRE_DEPLOY=1)."""
    if os.environ.get("FEDVOX_REQUIRE_DEPLOY") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """The path of a program; without it the test cannot run."""
    return shutil.which(name, path=PLACES) or cannot_run(f"{name} is not installed ({package})")


def said(*command: str | Path) -> tuple[int, str]:
    """Exit status of a command, and all that it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr
