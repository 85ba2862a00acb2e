"""One run folder as the pages see it: read again when its files have changed, and only then."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

from common.audit import AuditLog
from common.errors import FedvoxError
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import (
    AUDIT_FILE,
    FEDERATION_FILE,
    PARTITION_FILE,
    PLAN_FILE,
    ROUNDS_FILE,
    STATE_FILE,
    RunFolder,
)
from server.run_store.live_status import read_network_status
from server.run_store.locks import is_started
from server.run_store.record import RunRecord
from server.run_store.record_reader import read_training
from server.run_store.state import RunState
from server.run_store.status import RunStatus, describe_run

REPORT_FILE = "report.html"
_READ = (FEDERATION_FILE, PLAN_FILE, PARTITION_FILE, ROUNDS_FILE, STATE_FILE, SUMMARY_FILE, "events.jsonl")


@dataclass(frozen=True)
class Seen:
    """What a run folder says now.

    Attributes
    ----------
    status, state
        As the command ``status`` has them; None if they cannot be read, and then ``problem`` says why.
    """

    record: RunRecord
    status: RunStatus | None
    state: RunState | None
    problem: str = ""

    @property
    def name(self) -> str:
        """The federation's name, or the folder's."""
        configured = self.record.summary.get("name") or self.record.configuration.get("name")
        return str(configured or self.record.folder.resolve().name)


class WatchedRun:
    """One run.

    Parameters
    ----------
    path
        Its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.audit = AuditLog(path / AUDIT_FILE)
        self._lock = threading.Lock()
        self._record: tuple[Hashable, RunRecord] | None = None
        self._seen: tuple[Hashable, Seen] | None = None

    def mark(self) -> Hashable:
        """Return a value that changes when there is news of the run."""
        network = read_network_status(self.path)
        # The time of the last look is no news.
        said = None if network is None else repr(replace(network, written=""))
        report = mark_of(self.path / REPORT_FILE)
        return self._mark_of_record(), said, report, is_started(self.path), _waiting_releases(self.path)

    def see(self) -> Seen:
        """Return what the folder says now.

        Raises
        ------
        FedvoxError
            It is not the folder of a run.
        """
        with self._lock:
            mark = self.mark()
            if self._seen is None or self._seen[0] != mark:
                self._seen = mark, self._look()
            return self._seen[1]

    def _look(self) -> Seen:
        mark = self._mark_of_record()
        if self._record is None or self._record[0] != mark:
            self._record = mark, read_training(self.path)
        record = self._record[1]
        try:
            folder = RunFolder.open(self.path)
            return Seen(record, describe_run(folder), folder.load_state())
        except FedvoxError as error:
            return Seen(record, None, None, str(error))

    def _mark_of_record(self) -> Hashable:
        return tuple(mark_of(self.path / name) for name in _READ)


def _waiting_releases(path: Path) -> int:
    return len(list((path / "releases").glob("*.txt")))


def mark_of(file: Path) -> tuple[int, int] | None:
    """Return a value that changes when a file is written anew; None if there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size
