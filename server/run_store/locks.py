"""Locks and files through which the server's ``start`` and its server app coordinate; does not import Torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from common.errors import FedvoxError
from common.system.locks import FileLock, LockHeldError, is_locked, lock_file
from common.system.ownership import Claim, owned

RUN_VARIABLE = "FEDVOX_RUN"
NODES_FILE = "nodes.json"
DATABASE = "superlink.db"
UPDATES = "updates"
APP_LOG = "logs/app.log"
_APP_LOCK = "app.lock"
START_LOCK = "start.lock"
_PREVIOUS_APP_EXIT_SECONDS = 30.0


@dataclass(frozen=True)
class AppHolder:
    """The server app that holds the app lock or held it last; ``alive``: whether it still holds it."""

    flower_run: int
    pid: int
    alive: bool


@contextlib.contextmanager
def only_app(run: Path, flower_run: int) -> Iterator[None]:
    """Make this process the only server app of a run; a previous one gets some time to exit.

    Raises
    ------
    FedvoxError
        The previous one does not exit.
    """
    with _lock(run / _APP_LOCK, _PREVIOUS_APP_EXIT_SECONDS, "another server app is working on this run") as descriptor:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"flower_run": flower_run, "pid": os.getpid()}).encode(), 0)
        yield


def only_start(run: Path, removable: Collection[str] = (), mode: int = 0o777) -> AbstractContextManager[Claim]:
    """Make this process the only one that works on a run, from its first byte on; as ``owned``.

    Parameters
    ----------
    run
        The run folder, or that of a sweep; made if it is missing.
    removable
        Names of what the start makes in it, which go if it is refused.
    mode
        Permissions of a new folder, less the umask.

    Raises
    ------
    FedvoxError
        Another one is running.
    OutputError
        The folder cannot be made or locked.
    """

    def taken(owner: str) -> FedvoxError:
        return FedvoxError(f"{run}: is running already ({owner}); see fedvox-server status {run}")

    return owned(run, START_LOCK, taken, removable, mode)


def is_started(run: Path) -> bool:
    """Return whether a ``start`` of this run is alive; correct even after it was killed."""
    return _is_held(run / START_LOCK)


def app_holder(run: Path) -> AppHolder | None:
    """Return the server app that last took the lock, or None if there was none."""
    lock = run / _APP_LOCK
    alive = _is_held(lock)
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
        return AppHolder(int(content["flower_run"]), int(content["pid"]), alive)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kill_app(run: Path) -> None:
    """Kill the server app if one is alive; the next one resumes from whatever it leaves."""
    holder = app_holder(run)
    if holder is not None and holder.alive and _belongs_to(holder.pid, run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder.pid, signal.SIGKILL)


def registered_names(run: Path) -> Mapping[int, str]:
    """Return Flower node -> the site that registered its key, as ``start`` last wrote it."""
    try:
        content = json.loads((run / NODES_FILE).read_text(encoding="utf-8"))
        return {int(node): str(name) for node, name in content.items()}
    except (OSError, ValueError, AttributeError):  # missing or damaged; ``start`` writes it again within seconds
        return {}


def _belongs_to(pid: int, run: Path) -> bool:
    """Return whether a process was started for this run; its PID may have been reused."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{RUN_VARIABLE}={run.resolve()}".encode() in environment


def _lock(path: Path, wait_seconds: float, held: str) -> FileLock:
    """Lock a file of the run folder; ``held`` is the error text if another process keeps the lock."""
    try:
        return lock_file(path, wait_seconds=wait_seconds)
    except LockHeldError:
        raise FedvoxError(f"{path.parent}: {held}") from None


def _is_held(path: Path) -> bool:
    try:
        return is_locked(path)
    except OSError:
        return False
