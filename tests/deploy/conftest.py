"""The images, built once for all tests of the containers."""

from __future__ import annotations

import os

import pytest

from tests.deploy.machine import Machine, missing_programs
from tests.deploy.tools import cannot_run


@pytest.fixture(scope="session")
def machine() -> Machine:
    """A machine that has both images."""
    if os.geteuid() != 0:
        cannot_run("containers on networks of their own need root here")
    if missing := missing_programs():
        cannot_run(f"not installed: {', '.join(missing)} (make test-deploy installs them on Debian)")
    made = Machine()
    made.make_images()
    return made
