"""Shared fixtures. Real scans are read in place; they are never part of the repository."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.orthanc import Orthanc

# No example fails for being slow on a machine that has other things to do.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

REPOSITORY = Path(__file__).resolve().parents[1]


LONGEST = (
    "e2e/",
    "runner/test_runner",
    "/test_kill",
    "simulation/test_pri",
    "simulation/test_sweep",
    "test_split_start",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take longest first, so that the last process does not work on one of them alone."""
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in LONGEST))


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


@pytest.fixture(autouse=True)
def _log_of_its_own() -> None:
    """Commands that were called within this process by an earlier test have set how much is logged."""
    logging.getLogger("fedvox").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _hospital_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the ledger, or the hospital's key beside it, of whoever runs the tests."""
    folder = tmp_path_factory.getbasetemp() / "hospitals" / secrets.token_hex(8)
    monkeypatch.setenv("FEDVOX_LEDGER", str(folder / "ledger.jsonl"))


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The real Decathlon hippocampus dataset (Task04_Hippocampus)."""
    return _real_data("Task04_Hippocampus")


@pytest.fixture(scope="session")
def real_dicom() -> Path:
    """Real DICOM series, a folder each."""
    return _real_data("dicom")


@pytest.fixture(scope="session")
def known_faults() -> Path:
    """Inputs with faults that users of other tools reported, a folder each, beside the real data."""
    folder = Path(os.environ.get("FEDVOX_TEST_CASES", _real_data_root().parent / "cases"))
    if not folder.is_dir():
        pytest.skip("the inputs with known faults are missing: set FEDVOX_TEST_CASES to their folder")
    return folder


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """An empty PACS, in a network of the test's own: what the test starts is there too, and reaches nothing else."""
    # Late: tests that need no PACS need not wait for what it imports.
    from tests.orthanc import private_network, run_orthanc

    with private_network(), run_orthanc(tmp_path / "orthanc") as server:
        yield server
