"""Reads what is committed in a run folder, while the run goes on or later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import DamagedFileError
from server.run_store.folder import RESTORE, ROUNDS_FILE, STATE_FILE, RunFolder, RunState
from server.run_store.record import as_number


@dataclass(frozen=True)
class CommittedRound:
    """A line of ``rounds.jsonl`` that no crash takes back.

    Attributes
    ----------
    line
        The line.
    time
        Seconds since 1970: the start of the run and the seconds of its rounds so far, so that it is the same whenever
        it is read.
    """

    line: Mapping[str, Any]
    time: float


class RunReader:
    """Hands out each committed round of a run once.

    Parameters
    ----------
    path
        The run folder; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = RunFolder(path)
        self._state: RunState | None = None
        self._stamp: tuple[int, int] | None = None
        self._offset = 0
        self._seconds = 0.0

    def state(self) -> RunState | None:
        """Return the last committed state, or None before the first.

        Raises
        ------
        DamagedFileError
            It is damaged.
        """
        try:
            about = (self.path / STATE_FILE).stat()
        except FileNotFoundError:
            return None
        stamp = about.st_ino, about.st_mtime_ns
        if stamp != self._stamp:
            self._state, self._stamp = self._folder.load_state(), stamp
        return self._state

    def started(self) -> float:
        """Return when the run began, in seconds since 1970; 0 before it has."""
        state = self.state()
        return 0.0 if state is None else datetime.fromisoformat(state.started).timestamp()

    def new_rounds(self) -> list[CommittedRound]:
        """Return the rounds that were committed since the last call.

        Raises
        ------
        DamagedFileError
            The state or a round is damaged.
        """
        state = self.state()
        if state is None or state.rounds_bytes <= self._offset:
            return []
        with (self.path / ROUNDS_FILE).open("rb") as stream:
            stream.seek(self._offset)
            content = stream.read(state.rounds_bytes - self._offset)
        try:
            lines = [json.loads(line) for line in content.splitlines()]
        except ValueError:
            raise DamagedFileError(self.path / ROUNDS_FILE, "was changed or cut", RESTORE) from None
        self._offset = state.rounds_bytes
        found = []
        for line in lines:
            self._seconds += as_number(line.get("seconds")) or 0.0
            found.append(CommittedRound(line, self.started() + self._seconds))
        return found
