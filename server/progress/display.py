"""Live progress of a run: a live display on a terminal, plain lines elsewhere.

Both displays are event sinks. Rich is imported only for a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, assert_never

from common.formatting import counted
from server.formatting import format_seconds
from server.progress.events import (
    Event,
    EventSink,
    Notice,
    RoundDone,
    RoundStarted,
    RunStarted,
    SiteDone,
    SiteStarted,
    SiteStep,
    Stage,
)
from server.progress.wording import RoundTimes, one_line, round_summary, seconds_text, site_summary

STAGE_INTERVAL_SECONDS = 3.0


@contextmanager
def make_progress(stream: TextIO | None = None) -> Iterator[EventSink]:
    """Show the events of a ``with`` block on a stream, and leave a terminal as it was.

    Parameters
    ----------
    stream
        Where to show progress; None uses ``sys.stderr``.

    Yields
    ------
    EventSink
        A live display if ``stream`` is a terminal with cursor control, else plain lines.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        from rich.console import Console

        from server.progress.terminal import TerminalProgress

        console = Console(file=stream)
        if not console.is_dumb_terminal:
            with TerminalProgress(console) as display:
                yield display
            return
    yield PlainProgress(stream)


class PlainProgress:
    """Plain lines for logs and pipes: one per site and round, one per round, no control characters.

    Parameters
    ----------
    stream
        Where to write the lines.
    clock
        Monotonic clock in seconds; limits how often stages are reported.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._times = RoundTimes()
        self._stage = ("", -1)
        self._stage_at = float("-inf")

    def __call__(self, event: Event) -> None:
        """Write the event's lines, if it has any."""
        match event:
            case RunStarted():
                self._start(event)
            case Stage():
                self._show_stage(event)
            case RoundStarted() | SiteStarted() | SiteStep():
                pass  # the sites' lines name the round, and single steps would flood a log
            case SiteDone(number, site, line):
                self._write(f"{self._round_name(number)}: {site}: {site_summary(line)}")
            case RoundDone():
                self._end_round(event)
            case Notice(text):
                for part in text.splitlines() or [""]:
                    self._write(part)
            case _:
                assert_never(event)

    def _start(self, run: RunStarted) -> None:
        self._times = RoundTimes(run.rounds)
        sites = f"{counted(len(run.sites), 'site')}: {', '.join(run.sites)}"
        self._write(f"{run.name}: {counted(run.rounds, 'round')}, {sites}")

    def _show_stage(self, stage: Stage) -> None:
        """Write the stage at most every three seconds, and always when it starts and ends."""
        if (stage.text, stage.done) == self._stage:
            return
        now = self._clock()
        is_edge = stage.done >= stage.total or stage.text != self._stage[0]
        if is_edge or now - self._stage_at >= STAGE_INTERVAL_SECONDS:
            self._write(f"{stage.text} {stage.done}/{stage.total}")
            self._stage, self._stage_at = (stage.text, stage.done), now

    def _end_round(self, event: RoundDone) -> None:
        """Write one line with the mean Dice, the time and the time left."""
        line = event.line
        self._times.add(line)
        number = int(line["round"])
        parts = [f"{self._round_name(number)} done in {seconds_text(line)}", round_summary(line)]
        left = self._times.left(number)
        if number < self._times.rounds and left is not None:
            parts.append(f"about {format_seconds(left)} left")
        self._write(", ".join(parts))

    def _round_name(self, number: int) -> str:
        return f"round {number}/{self._times.rounds}" if number <= self._times.rounds else "final evaluation"

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = one_line(text).encode(encoding, errors="replace").decode(encoding)
        self._stream.write(line + "\n")
        self._stream.flush()
