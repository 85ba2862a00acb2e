"""Live progress of a run: a display that redraws itself on a terminal, plain lines everywhere else.

Both faces are told the same things and are context managers. Rich is imported only when there is a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from common.formatting import counted
from server.formatting import format_seconds
from server.progress.wording import RoundTimes, one_line, round_summary, seconds_text, site_summary

STAGE_INTERVAL_SECONDS = 3.0


class ProgressDisplay(Protocol):
    """What the round loop and the simulation tell about how far they are."""

    def start(self, name: str, rounds: int, sites: Sequence[str]) -> None:
        """A run of ``rounds`` training rounds and one final evaluation begins, or goes on; another may follow it."""

    def stage(self, text: str, done: int, total: int) -> None:
        """Work outside rounds is ``done`` of ``total``, such as preparing scans; may be called very often."""

    def round_started(self, round: int, phase: str) -> None:
        """A round begins; ``phase`` is ``train`` or ``evaluate``."""

    def site_started(self, round: int, site: str, steps: int) -> None:
        """A site begins its part of a round: ``steps`` training steps, 0 if it only evaluates."""

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A site has done ``step`` of its ``steps``; may be called very often."""

    def site_done(self, round: int, site: str, line: Mapping[str, Any]) -> None:
        """A site has answered; ``line`` is its object as in ``rounds.jsonl``."""

    def round_done(self, line: Mapping[str, Any]) -> None:
        """A round is complete; ``line`` is its object as in ``rounds.jsonl``."""

    def message(self, text: str) -> None:
        """Something that the user should read; stays on the screen."""

    def close(self) -> None:
        """Ends the display and leaves the terminal as it was; may be called more than once."""

    def __enter__(self) -> Self:
        """The display itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the display, whatever happened."""


def make_progress(stream: TextIO | None = None) -> ProgressDisplay:
    """The display that fits a stream.

    Parameters
    ----------
    stream
        where to show progress; None takes ``sys.stderr``.

    Returns
    -------
    ProgressDisplay
        A display that redraws itself if ``stream`` is a terminal that can do so, else one of plain lines.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        from rich.console import Console

        from server.progress.terminal import TerminalProgress

        console = Console(file=stream)
        if not console.is_dumb_terminal:
            return TerminalProgress(console)
    return PlainProgress(stream)


class PlainProgress:
    """Plain lines for logs and pipes: one per site and round, one per round, no control characters.

    Parameters
    ----------
    stream
        where lines go.
    clock
        seconds that only ever rise; decides how often stages are reported.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._times = RoundTimes()
        self._stage = ("", -1)
        self._stage_at = float("-inf")

    def start(self, name: str, rounds: int, sites: Sequence[str]) -> None:
        """Says what is about to run."""
        self._times = RoundTimes(rounds)
        self._write(f"{name}: {counted(rounds, 'round')}, {counted(len(sites), 'site')}: {', '.join(sites)}")

    def stage(self, text: str, done: int, total: int) -> None:
        """Reports at most every three seconds, and always the end."""
        if (text, done) == self._stage:
            return
        now = self._clock()
        if done >= total or text != self._stage[0] or now - self._stage_at >= STAGE_INTERVAL_SECONDS:
            self._write(f"{text} {done}/{total}")
            self._stage, self._stage_at = (text, done), now

    def round_started(self, round: int, phase: str) -> None:
        """Nothing: the sites' lines say it."""

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Nothing: the site's line says it."""

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Nothing: a log is no place for single steps."""

    def site_done(self, round: int, site: str, line: Mapping[str, Any]) -> None:
        """One line with loss, Dice of the model that arrived, and seconds; or what went wrong."""
        self._write(f"{self._round_name(round)}: {site}: {site_summary(line)}")

    def round_done(self, line: Mapping[str, Any]) -> None:
        """One line with the mean Dice, the time, and the time left."""
        self._times.add(line)
        number = int(line["round"])
        parts = [f"{self._round_name(number)} done in {seconds_text(line)}", round_summary(line)]
        left = self._times.left(number)
        if number < self._times.rounds and left is not None:
            parts.append(f"about {format_seconds(left)} left")
        self._write(", ".join(parts))

    def message(self, text: str) -> None:
        """The text, line by line."""
        for line in text.splitlines() or [""]:
            self._write(line)

    def close(self) -> None:
        """Nothing to clean up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _round_name(self, number: int) -> str:
        return f"round {number}/{self._times.rounds}" if number <= self._times.rounds else "final evaluation"

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = one_line(text).encode(encoding, errors="replace").decode(encoding)
        self._stream.write(line + "\n")
        self._stream.flush()
