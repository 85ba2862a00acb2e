"""Progress from one process to another: what happens in the server app, as lines in a file of the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.progress.display import ProgressDisplay

PROGRESS_FILE = "logs/progress.jsonl"
_CALLS = frozenset({"round_started", "site_step", "site_done", "round_done", "message"})


class ProgressWriter:
    """A round loop's observer that writes everything down, one JSON object a line."""

    def __init__(self, run: Path) -> None:
        self._path = run / PROGRESS_FILE
        self._path.parent.mkdir(exist_ok=True)

    def round_started(self, round: int, phase: str) -> None:
        """A round begins."""
        self._write("round_started", round, phase)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A site has done ``step`` of ``steps`` steps."""
        self._write("site_step", round, site, step, steps, loss)

    def site_done(self, round: int, site: str, line: Mapping[str, Any]) -> None:
        """A site has answered."""
        self._write("site_done", round, site, line)

    def round_done(self, line: Mapping[str, Any]) -> None:
        """A round is finished."""
        self._write("round_done", line)

    def message(self, text: str) -> None:
        """Something worth a line happened."""
        self._write("message", text)

    def _write(self, call: str, *values: Any) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([call, *values], ensure_ascii=False) + "\n")


class ProgressReader:
    """Passes on to a display what was written since the last look; keeps what the latest lines said.

    Attributes
    ----------
    round, phase
        that are under way; None before the first.
    steps
        site -> (step, steps) in this round. done: site -> its status in this round.
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
        """Reads what is new; whether anything was."""
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
            except ValueError:  # cut in half by a crash
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
