"""What the site does now, how the last rounds went, and the last lines of its logs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from client.consent.policy import SENT_EVENT
from client.state_folder import StateFolder, site_status
from client.web.drawing import chart_of
from client.web.place import Place
from common.audit import Entry, read_entries
from common.web.marks import Remembered, mark_of
from common.web.visits import Answer, Page, Visit

LOGS = ("start.log", "courier.log", "runner.log")
MOST_LINES = 100
MOST_BYTES = 64 * 1024
LONGEST_LINE = 400
MOST_ROUNDS = 200
_SECRETS = re.compile(r"(//)[^/@\s]+@|((?:password|token|secret|authorization)[\"']?\s*[:=]\s*)\S+", re.IGNORECASE)
_NOTHING_KNOWN: Mapping[str, Any] = {
    **dict.fromkeys(("problem", "notice", "state", "network"), ""),
    **dict.fromkeys(("step", "steps", "round", "prepared", "cases"), 0),
    "loss": None,
}


@dataclass(frozen=True)
class SentRound:
    """What this site reported of a round; None for what it did not."""

    number: int
    time: str
    train_loss: float | None
    dice: float | None


class ActivityPages:
    """Shows a running site."""

    def __init__(self, place: Place, trail_files: Sequence[Path]) -> None:
        self._place = place
        self._folder = StateFolder(place.state)
        self._log = trail_files[0]
        self._rounds = Remembered(partial(mark_of, *trail_files), self._read_rounds)

    def mark(self) -> object:
        """Return a value that changes when the site has done something."""
        status = site_status(self._folder)
        runner = {name: value for name, value in status.get("runner", {}).items() if name not in ("time", "sign_by")}
        logs = mark_of(*(self._folder.logs / name for name in LOGS))
        return repr((status["running"], status.get("connected"), runner)), logs

    def page(self, visit: Visit) -> Answer:
        """Show the live round, the last rounds and the logs."""
        del visit
        status = site_status(self._folder)
        now = time.time()
        processes = [
            (name, str(about.get("state")), *_lasted(now - about.get("since", now)), about.get("restarts", 0))
            for name, about in status.get("processes", {}).items()
        ]
        rounds = self._rounds.get()
        x = _ascending([line.number for line in rounds])
        values = {
            "status": status,
            "runner": {**_NOTHING_KNOWN, **status.get("runner", {})},
            "processes": processes,
            "rounds": rounds[::-1][:10],
            "loss": chart_of(x, [("loss", [line.train_loss for line in rounds])]) if rounds else None,
            "logs": [(name, lines) for name in LOGS if (lines := last_lines(self._folder.logs / name))],
        }
        return Page("activity.html.jinja", values)

    def _read_rounds(self) -> list[SentRound]:
        if not self._log.exists():
            return []
        found = (_round_of(entry) for entry in read_entries(self._log) if entry.event == SENT_EVENT)
        return [line for line in found if line is not None][-MOST_ROUNDS:]


def _ascending(numbers: list[int]) -> list[int]:
    """Return the numbers of rounds for a chart: as they are, or counted from 1 where a new run began again."""
    return numbers if all(one < other for one, other in pairwise(numbers)) else list(range(1, len(numbers) + 1))


def _lasted(seconds: float) -> tuple[str, int]:
    """Return a duration as a unit, which is a key of the texts, and a whole number of it."""
    # A clock that jumped makes no duration negative.
    seconds = max(0.0, seconds)
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return unit, int(seconds // size)
    return "seconds", round(seconds)


def last_lines(file: Path) -> list[str]:
    """Return the last lines of a log, each shortened, without passwords in addresses and the like; none without one."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - MOST_BYTES))
            lines = stream.read(MOST_BYTES).decode("utf-8", "backslashreplace").split("\n")
    except OSError:
        return []
    lines = lines[1:] if size > MOST_BYTES else lines
    lines = [line.rstrip("\r") for line in lines if line.strip()][-MOST_LINES:]
    shown = [_SECRETS.sub(r"\1\2…", line) for line in lines]
    return [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in shown]


def _round_of(entry: Entry) -> SentRound | None:
    """Return what the log says of a result; None for another message."""
    fields = entry.details.get("fields")
    if not isinstance(fields, Mapping) or "train_loss" not in fields:
        return None
    number = entry.details.get("round")
    dice = fields.get("dice")
    scores = [score for score in map(_number, dice.values()) if score is not None] if isinstance(dice, Mapping) else []
    mean = sum(scores) / len(scores) if scores else None
    return SentRound(number if isinstance(number, int) else 0, entry.time, _number(fields.get("train_loss")), mean)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
