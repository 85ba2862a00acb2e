"""Live progress of a run: a live display on a terminal, plain lines elsewhere.

Both displays have the same interface and are context managers. Rich is imported only for a terminal.
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
    """Receives progress from the round loop and the simulation."""

    def start(self, name: str, rounds: int, sites: Sequence[str]) -> None:
        """Begin or resume a run of ``rounds`` training rounds and one final evaluation; another run may follow."""

    def stage(self, text: str, done: int, total: int) -> None:
        """Report that work outside rounds, such as preparing scans, is ``done`` of ``total``; may be called often."""

    def round_started(self, round: int, phase: str) -> None:
        """Report the start of a round; ``phase`` is ``train`` or ``evaluate``."""

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Report that a site starts a round of ``steps`` training steps, 0 if it only evaluates."""

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Report that a site has done ``step`` of its ``steps``; may be called often."""

    def site_done(self, round: int, site: str, line: Mapping[str, Any]) -> None:
        """Report a site's reply; ``line`` is its object in ``rounds.jsonl``."""

    def round_done(self, line: Mapping[str, Any]) -> None:
        """Report that a round is complete; ``line`` is its object in ``rounds.jsonl``."""

    def message(self, text: str) -> None:
        """Show a message that stays on the screen."""

    def close(self) -> None:
        """End the display and restore the terminal; may be called more than once."""

    def __enter__(self) -> Self:
        """Return the display itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the display."""


def make_progress(stream: TextIO | None = None) -> ProgressDisplay:
    """Make the display that suits a stream.

    Parameters
    ----------
    stream
        Where to show progress; None uses ``sys.stderr``.

    Returns
    -------
    ProgressDisplay
        A live display if ``stream`` is a terminal with cursor control, else plain lines.
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

    def start(self, name: str, rounds: int, sites: Sequence[str]) -> None:
        """Write the run's name, rounds and sites."""
        self._times = RoundTimes(rounds)
        self._write(f"{name}: {counted(rounds, 'round')}, {counted(len(sites), 'site')}: {', '.join(sites)}")

    def stage(self, text: str, done: int, total: int) -> None:
        """Write the stage at most every three seconds, and always when it starts and ends."""
        if (text, done) == self._stage:
            return
        now = self._clock()
        if done >= total or text != self._stage[0] or now - self._stage_at >= STAGE_INTERVAL_SECONDS:
            self._write(f"{text} {done}/{total}")
            self._stage, self._stage_at = (text, done), now

    def round_started(self, round: int, phase: str) -> None:
        """Do nothing: the sites' lines name the round."""

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Do nothing: the site's line follows when it is done."""

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Do nothing: single steps would flood a log."""

    def site_done(self, round: int, site: str, line: Mapping[str, Any]) -> None:
        """Write one line with loss, Dice of the received model and time, or the reason for a failure."""
        self._write(f"{self._round_name(round)}: {site}: {site_summary(line)}")

    def round_done(self, line: Mapping[str, Any]) -> None:
        """Write one line with the mean Dice, the time and the time left."""
        self._times.add(line)
        number = int(line["round"])
        parts = [f"{self._round_name(number)} done in {seconds_text(line)}", round_summary(line)]
        left = self._times.left(number)
        if number < self._times.rounds and left is not None:
            parts.append(f"about {format_seconds(left)} left")
        self._write(", ".join(parts))

    def message(self, text: str) -> None:
        """Write the text, line by line."""
        for line in text.splitlines() or [""]:
            self._write(line)

    def close(self) -> None:
        """Do nothing: there is nothing to clean up."""

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
