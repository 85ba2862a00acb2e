"""The images, built once for all tests of the containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.deploy.machine import Machine, missing_programs


@pytest.fixture(scope="session")
def machine() -> Machine:
    """A machine that has both images."""
    reason = ""
    if os.geteuid() != 0:
        reason = "containers on networks of their own need root here"
    elif missing := missing_programs():
        reason = f"not installed: {', '.join(missing)} (make test-deploy installs them on Debian)"
    if reason and os.environ.get("FEDVOX_REQUIRE_DEPLOY") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    made = Machine(Path(os.environ.get("FEDVOX_DEPLOY_CACHE", "/var/tmp/fedvox-deploy")))  # noqa: S108
    made.make_images()
    return made
