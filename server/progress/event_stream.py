"""Progress from the server app to another process, as lines in a file of the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.progress.display import ProgressDisplay

PROGRESS_FILE = "logs/progress.jsonl"
_CALLS = frozenset({"round_started", "site_step", "site_done", "round_done", "message"})


class ProgressWriter:
    """Observer of a round loop that writes every event as a line of JSON."""

    def __init__(self, run: Path) -> None:
        self._path = run / PROGRESS_FILE
        self._path.parent.mkdir(exist_ok=True)

    def round_started(self, round: int, phase: str) -> None:
        """Record the start of a round."""
        self._write("round_started", round, phase)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Record that a site has done ``step`` of ``steps`` steps."""
        self._write("site_step", round, site, step, steps, loss)

    def site_done(self, round: int, site: str, line: Mapping[str, Any]) -> None:
        """Record a site's reply."""
        self._write("site_done", round, site, line)

    def round_done(self, line: Mapping[str, Any]) -> None:
        """Record that a round is complete."""
        self._write("round_done", line)

    def message(self, text: str) -> None:
        """Record a message for the user."""
        self._write("message", text)

    def _write(self, call: str, *values: Any) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([call, *values], ensure_ascii=False) + "\n")


class ProgressReader:
    """Forwards new events to a display and keeps the latest state.

    Attributes
    ----------
    round, phase
        The current round and its phase; None before the first round.
    steps
        (step, steps) in this round, by site.
    done
        Status in this round, by site.
    last_message
        The last message.
    """

    def __init__(self, run: Path, display: ProgressDisplay) -> None:
        self._path = run / PROGRESS_FILE
        self._display = display
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self.round: int | None = None
        self.phase: str | None = None
        self.steps: dict[str, tuple[int, int]] = {}
        self.done: dict[str, str] = {}
        self.last_message = ""

    def poll(self) -> bool:
        """Forward new events; return whether there were any."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                content = stream.read()
        except FileNotFoundError:
            return False
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                call, *values = json.loads(line)
            except ValueError:  # truncated by a crash
                continue
            if call in _CALLS:
                self._note(call, values)
                getattr(self._display, call)(*values)
        return bool(whole)

    def _note(self, call: str, values: list[Any]) -> None:
        if call == "round_started":
            self.round, self.phase = values
            self.steps, self.done = {}, {}
        elif call == "site_step":
            self.steps[values[1]] = (values[2], values[3])
        elif call == "site_done":
            self.done[values[1]] = values[2]["status"]
        elif call == "message":
            self.last_message = values[0]
