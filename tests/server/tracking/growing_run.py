"""A run folder that grows round by round, as the rounds of a federation let it grow."""

from __future__ import annotations

import json
from pathlib import Path

from server.run_store.folder import RunFolder
from server.run_store.state import RunState
from tests.server.run_folder import round_line, write_run_folder

STARTED = "2026-01-05T09:00:00+00:00"
SITES = ("north", "south")


class GrowingRun:
    """A run that has not begun yet.

    Attributes
    ----------
    lines
        What it has written to ``rounds.jsonl`` so far.
    """

    def __init__(self, path: Path, rounds: int = 3, name: str = "hippocampus") -> None:
        self.path, self.rounds = path, rounds
        finished = write_run_folder(path.with_name(f"{path.name}-finished"), rounds, SITES)
        self._files = {name: (finished / name).read_bytes() for name in ("plan.json", "summary.json")}
        self._files["federation.yaml"] = (
            (finished / "federation.yaml").read_bytes().replace(b"hippocampus", name.encode())
        )
        self.lines = [round_line(number, rounds, SITES) for number in range(1, rounds + 2)]
        self._folder = RunFolder(path)
        self._state = RunState(run=f"run-of-{name}", digest="d" * 64, started=STARTED)

    def begin(self) -> None:
        self.path.mkdir()
        for name in ("plan.json", "federation.yaml"):
            (self.path / name).write_bytes(self._files[name])
        self._folder.commit(self._state)

    def commit(self, number: int) -> None:
        """Finish a round; one more than ``rounds`` is the final evaluation."""
        self._folder.append_round(self.lines[number - 1])
        self._state.round, self._state.finished = min(number, self.rounds), number > self.rounds
        self._folder.commit(self._state)

    def leave_uncommitted(self, number: int) -> None:
        """A line whose state a crash prevented; its scores are other than those that count later."""
        self._folder.append_round(round_line(number, self.rounds, SITES) | {"mean_dice": 0.001})

    def drop_uncommitted(self) -> None:
        self._folder.rewind(self._state)

    def end(self) -> None:
        """Write results."""
        (self.path / "summary.json").write_bytes(self._files["summary.json"])
        (self.path / "report.html").write_text("<title>report</title>", encoding="utf-8")
        (self.path / "model").mkdir()
        (self.path / "model" / "weights.safetensors").write_bytes(bytes(range(256)) * 1000)
        (self.path / "model" / "model.json").write_text(json.dumps({"model": 1}), encoding="utf-8")

    def whole(self) -> GrowingRun:
        """Run to the end."""
        self.begin()
        for number in range(1, self.rounds + 2):
            self.commit(number)
        self.end()
        return self
