"""The files of a running site, and the status that it shows to other processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from common.errors import FedvoxError, OutputError
from common.system.files import write_in_turn
from common.system.locks import is_locked
from common.system.ownership import Claim, owned

APPROVALS_FILE = "approvals.json"
AUDIT_FILE = "audit.jsonl"
FINGERPRINT_EVENT = "fingerprint_written"
"""Event of the audit log: a fingerprint was written, to be sent by hand."""
DATA_CHECK_FILE = "data-check.json"
LOCK_FILE = "lock"
CONTACT_IS_LOST_AFTER_SECONDS = 15.0

Role = Literal["site", "courier", "runner"]
"""What uses a state folder: a whole site, or one of its two processes alone."""


def default_ledger() -> Path:
    """Return the hospital's ledger, shared by all kits: $FEDVOX_LEDGER, or a file in the user's data folder."""
    if file := os.environ.get("FEDVOX_LEDGER"):
        return Path(file)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fedvox" / "ledger.jsonl"


def default_consent() -> Path:
    """Return the file of the hospital's own key, beside its ``default_ledger`` and outside every kit."""
    return default_ledger().with_name("consent.json")


class AlreadyRunningError(FedvoxError):
    """Another process runs this site."""


class StateFolder:
    """The files of a site's state folder.

    Parameters
    ----------
    path
        Path of the folder; by default ``state`` in the kit.

    Attributes
    ----------
    shared
        The folder shared by courier and runner when one process starts both.
    journal
        What the runner has done with each task.
    vectors
        Vectors that the site keeps between rounds, one folder for each purpose (``client.site_vectors``).
    personal_model
        The bundle of the site's personal model.
    global_model
        The last global model that the runner has worked with, under its SHA-256.
    runner
        The runner's status.
    contact
        Touched by the courier when the server answers it, at most twice a second.
    status
        Status of the supervised processes.
    logs
        The logs of all processes.
    flower_home
        Flower's own state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shared = path / "shared"
        self.journal = path / "journal"
        self.vectors = path / "vectors"
        self.personal_model = path / "personal-model"
        self.global_model = path / "global-model"
        self.runner = path / "runner.json"
        self.contact = path / "contact"
        self.status = path / "status.json"
        self.logs = path / "logs"
        self.flower_home = path / "flwr-home"

    def make(self) -> None:
        """Create the folder, for its owner alone.

        Raises
        ------
        OutputError
            If it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be made: {error.strerror}; give another --state") from None

    @contextmanager
    def locked(self) -> Iterator[Claim]:
        """Own the folder, as ``owned``; the kernel releases the lock however the process ends.

        Raises
        ------
        AlreadyRunningError
            If another process holds it.
        OutputError
            If it cannot be written.
        """

        def taken(owner: str) -> AlreadyRunningError:
            return AlreadyRunningError(f"{self.path}: this site is already running ({owner}); see fedvox-client status")

        # The check of the data may have taken hours: it goes only with the whole folder.
        removable = {"logs"} if self.path.exists() else {"logs", DATA_CHECK_FILE}
        with owned(self.path, LOCK_FILE, taken, removable, mode=0o700) as claim:
            self.make()
            yield claim

    def is_locked(self) -> bool:
        """Return whether a process holds the lock."""
        return is_locked(self.path / LOCK_FILE)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file that others read; not flushed to disk, as it is useless after a power failure.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_in_turn(path, json.dumps(content))


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a status file; empty if it is missing or cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def site_status(folder: StateFolder) -> dict[str, Any]:
    """Return the current state of a site, ignoring what killed processes left behind.

    Returns
    -------
    dict[str, Any]
        ``running``; if so also ``role``, ``since`` (seconds since the epoch), ``pid``, ``connected`` (to the server;
        None if only the runner runs, which cannot know), ``last_contact`` (seconds ago; None if there was none),
        ``ready``, ``processes`` (name -> state) and ``runner`` (state, what it works on, and ``isolated``: whether it
        has no network).
    """
    if not folder.is_locked():
        return {"running": False}
    known, runner = read_json(folder.status), read_json(folder.runner)
    role, processes = known.get("role", "site"), known.get("processes", {})
    last_contact = _age(folder.contact)
    if role == "courier":
        runner = {"state": "elsewhere"}
    elif runner.get("pid") != processes.get("runner", {}).get("pid"):
        runner = {"state": "starting"}
    courier_runs = processes.get("courier", {}).get("pid") is not None
    connected = None if role == "runner" else courier_runs and _is_fresh(last_contact)
    runner_serves = runner.get("state") in ("waiting", "working", "elsewhere") and not runner.get("problem")
    return {
        "running": True,
        "role": role,
        "since": known.get("since"),
        "pid": known.get("pid"),
        "connected": connected,
        "last_contact": last_contact,
        "ready": connected is not False and runner_serves,
        "processes": processes,
        "runner": runner,
    }


def _age(file: Path) -> float | None:
    """Return the seconds since a file was touched; None if it is missing."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except OSError:
        return None


def _is_fresh(age: float | None) -> bool:
    return age is not None and age < CONTACT_IS_LOST_AFTER_SECONDS
