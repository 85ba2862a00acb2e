"""Shared fixtures. Real scans are read in place; they are never part of the repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# No example fails for being slow on a machine that has other things to do.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

REPOSITORY = Path(__file__).resolve().parents[1]


def _real_data_root() -> Path:
    return Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def _real_data(name: str) -> Path:
    folder = _real_data_root() / name
    if folder.is_dir():
        return folder
    reason = f"{name} is missing: set FEDVOX_TEST_DATA to the folder that holds it"
    if os.environ.get("FEDVOX_REQUIRE_TEST_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The real Decathlon hippocampus dataset (Task04_Hippocampus)."""
    return _real_data("Task04_Hippocampus")


@pytest.fixture(scope="session")
def nginx() -> str:
    """The path of nginx, for tests that start the server's TLS proxy."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None and os.environ.get("FEDVOX_REQUIRE_NGINX") == "1":
        pytest.fail("nginx is not installed")
    return found or pytest.skip("nginx is not installed: the server's TLS proxy needs it")
