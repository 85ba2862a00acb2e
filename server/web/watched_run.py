"""One run folder as the pages see it: read again when its files have changed, and only then."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from common.audit import AuditLog
from common.errors import FedvoxError
from common.web.marks import Remembered, mark_of
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import (
    AUDIT_FILE,
    FEDERATION_FILE,
    PARTITION_FILE,
    PLAN_FILE,
    REPORT_FILE,
    ROUNDS_FILE,
    STATE_FILE,
    RunFolder,
)
from server.run_store.live_status import read_network_status
from server.run_store.locks import is_started
from server.run_store.record import RunRecord
from server.run_store.record_reader import read_training
from server.run_store.releases import noted_releases
from server.run_store.state import RunState
from server.run_store.status import RunStatus, as_it_runs, describe_files
from server.web.history import History

_READ = (FEDERATION_FILE, PLAN_FILE, PARTITION_FILE, ROUNDS_FILE, STATE_FILE, SUMMARY_FILE, "events.jsonl")


@dataclass(frozen=True)
class Seen:
    """What a run folder says now.

    Attributes
    ----------
    status, state
        As the command ``status`` has them; None if they cannot be read, and then ``problem`` says why.
    released
        Sites in quarantine that somebody has released, which the run's next round reads.
    """

    history: History
    status: RunStatus | None
    state: RunState | None
    problem: str = ""
    released: frozenset[str] = frozenset()

    @property
    def record(self) -> RunRecord:
        """All that the run's files hold."""
        return self.history.record

    @property
    def name(self) -> str:
        """The federation's name, or the folder's."""
        return self.record.title


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
        files = [path / name for name in _READ]
        self._history = Remembered(partial(mark_of, *files), lambda: History(read_training(path)))
        self._state = Remembered(partial(mark_of, *files), self._read_state)
        self._seen = Remembered(self.mark, self._look)

    def mark(self) -> Hashable:
        """Return a value that changes when there is news of the run."""
        network = read_network_status(self.path)
        # The time of the last look is no news.
        said = None if network is None else repr(replace(network, written=""))
        files = mark_of(*(self.path / name for name in _READ), self.path / REPORT_FILE)
        return files, said, is_started(self.path), self._released()

    def see(self) -> Seen:
        """Return what the folder says now.

        Raises
        ------
        FedvoxError
            It is not the folder of a run.
        """
        return self._seen.get()

    def _look(self) -> Seen:
        history = self._history.get()
        try:
            status, state = self._state.get()
        except FedvoxError as error:
            return Seen(history, None, None, str(error))
        return Seen(history, as_it_runs(status, self.path), state, released=self._released())

    def _released(self) -> frozenset[str]:
        return frozenset(noted_releases(self.path).values())

    def _read_state(self) -> tuple[RunStatus, RunState | None]:
        folder = RunFolder.open(self.path)
        return describe_files(folder), folder.load_state()
