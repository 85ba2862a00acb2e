"""Everything that can happen in a run and that someone may want to see: a closed union of small records.

Whoever has something to tell calls an ``EventSink``. A display is one, a file is one, and so is a list's ``append``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Phase = Literal["train", "evaluate"]


@dataclass(frozen=True)
class RunStarted:
    """A run of ``rounds`` training rounds and one final evaluation begins or resumes; another may follow it."""

    name: str
    rounds: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """Work outside rounds, such as preparing scans, is ``done`` of ``total``; may come often."""

    text: str
    done: int
    total: int


@dataclass(frozen=True)
class RoundStarted:
    """A round begins."""

    round: int
    phase: Phase


@dataclass(frozen=True)
class SiteStarted:
    """A site starts a round of ``steps`` training steps, 0 if it only evaluates."""

    round: int
    site: str
    steps: int


@dataclass(frozen=True)
class SiteStep:
    """A site has done ``step`` of its ``steps``; ``loss`` is None where it is not known. May come often."""

    round: int
    site: str
    step: int
    steps: int
    loss: float | None = None


@dataclass(frozen=True)
class SiteDone:
    """A site has answered; ``line`` is its object in ``rounds.jsonl``. Comes again if that changes."""

    round: int
    site: str
    line: Mapping[str, Any]


@dataclass(frozen=True)
class RoundDone:
    """A round is complete and committed; ``line`` is its object in ``rounds.jsonl``."""

    line: Mapping[str, Any]


@dataclass(frozen=True)
class Notice:
    """A message for the user that stays on the screen."""

    text: str


Event = RunStarted | Stage | RoundStarted | SiteStarted | SiteStep | SiteDone | RoundDone | Notice
EventSink = Callable[[Event], None]


def interrupted(folder: Path) -> Notice:
    """Return what to say at once after an interruption, because the report may take a while."""
    return Notice(f"stopping: the report of {folder} is written first; interrupt again to do without")
