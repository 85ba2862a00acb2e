"""Events from the server app to another process, as lines in a file of the run folder."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter

from server.progress.events import Event, Notice, Phase, RoundStarted, SiteDone, SiteStep

PROGRESS_FILE = "logs/progress.jsonl"
_KINDS: dict[str, TypeAdapter[Event]] = {kind.__name__: TypeAdapter(kind) for kind in get_args(Event)}


class EventWriter:
    """Event sink that appends every event to the run's file, as one line of JSON: its kind and its fields."""

    def __init__(self, run: Path) -> None:
        self._path = run / PROGRESS_FILE
        self._path.parent.mkdir(exist_ok=True)

    def __call__(self, event: Event) -> None:
        """Write the event."""
        content = {field.name: getattr(event, field.name) for field in fields(event)}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([type(event).__name__, content], ensure_ascii=False) + "\n")


class EventReader:
    """Reads what an ``EventWriter``, in this process or another, has written to the run's file.

    Parameters
    ----------
    run
        The run folder.
    only_new
        Whether to skip what is in the file already.
    """

    def __init__(self, run: Path, *, only_new: bool = False) -> None:
        self._path = run / PROGRESS_FILE
        self._offset = self._path.stat().st_size if only_new and self._path.exists() else 0

    def read(self) -> list[Event]:
        """Return the events since the last call. Lines that are damaged or of an unknown kind are skipped."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = (_event_of(line) for line in whole.split(b"\n"))
        return [event for event in events if event is not None]


def _event_of(line: bytes) -> Event | None:
    try:
        kind, content = json.loads(line)
        return _KINDS[kind].validate_python(content)
    except (ValueError, TypeError, KeyError):  # truncated by a crash, or written by another version
        return None


class LatestProgress:
    """Event sink that keeps how far a run is.

    Attributes
    ----------
    round, phase
        The current round and its phase; None before the first round.
    steps
        (step, steps) in this round, by site.
    done
        Status in this round, by site.
    last_notice
        The text of the last notice.
    """

    def __init__(self) -> None:
        self.round: int | None = None
        self.phase: Phase | None = None
        self.steps: dict[str, tuple[int, int]] = {}
        self.done: dict[str, str] = {}
        self.last_notice = ""

    def __call__(self, event: Event) -> None:
        """Take note of the event."""
        match event:
            case RoundStarted(number, phase):
                self.round, self.phase = number, phase
                self.steps, self.done = {}, {}
            case SiteStep(_, site, step, steps):
                self.steps[site] = (step, steps)
            case SiteDone(_, site, line):
                self.done[site] = line["status"]
            case Notice(text):
                self.last_notice = text
            case _:
                pass
