"""Live progress on a terminal. Imported only for a terminal, so that Rich costs nothing elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from types import TracebackType
from typing import Self, assert_never

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.formatting import format_seconds
from server.progress.events import (
    Event,
    Notice,
    RoundDone,
    RoundStarted,
    RunStarted,
    SiteDone,
    SiteStarted,
    SiteStep,
    Stage,
)
from server.progress.wording import RoundTimes, number_text, one_line, round_summary, seconds_text, site_summary


@dataclass
class _SiteRow:
    """One site's row in the table."""

    state: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: object = None
    dice: object = None
    previous_dice: object = None
    epsilon: object = None


class TerminalProgress:
    """A live display: a table of sites above a bar for the whole run, redrawn four times a second.

    Parameters
    ----------
    console
        Rich's console of the terminal.
    clock
        Monotonic clock in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._lock = RLock()
        self._live: Live | None = None
        self._closed = False
        self._times = RoundTimes()
        self._name = ""
        self._round = 0
        self._rounds_done = 0
        self._phase = ""
        self._rows: dict[str, _SiteRow] = {}
        self._stage: Stage | None = None
        self._started_at = clock()
        self._round_started_at = self._started_at

    def __call__(self, event: Event) -> None:
        """Show the event."""
        match event:
            case RunStarted():
                self._start(event)
            case Stage():
                self._show_stage(event)
            case RoundStarted():
                self._start_round(event)
            case SiteStarted():
                self._start_site(event)
            case SiteStep():
                self._advance_site(event)
            case SiteDone():
                self._end_site(event)
            case RoundDone():
                self._end_round(event)
            case Notice(text):
                self._print(text)
            case _:
                assert_never(event)

    def _start(self, run: RunStarted) -> None:
        """Show the empty table of sites."""
        with self._lock:
            self._name, self._times = run.name, RoundTimes(run.rounds)
            self._round, self._rounds_done, self._phase, self._stage = 0, 0, "", None
            self._rows = {site: _SiteRow() for site in run.sites}
            self._started_at = self._round_started_at = self._clock()
        self._show()

    def _show_stage(self, stage: Stage) -> None:
        """Show a bar until it is full."""
        with self._lock:
            self._stage = None if stage.done >= stage.total else stage
        self._show()

    def _start_round(self, event: RoundStarted) -> None:
        """Set all sites to waiting."""
        with self._lock:
            self._round, self._phase, self._stage = event.round, event.phase, None
            self._rounds_done = event.round - 1
            self._round_started_at = self._clock()
            for row in self._rows.values():
                row.state, row.step, row.steps = "waiting", 0, 0
        self._show()

    def _start_site(self, event: SiteStarted) -> None:
        """Show that the site is training or evaluating."""
        with self._lock:
            self._round, row = event.round, self._rows.setdefault(event.site, _SiteRow())
            row.state, row.step, row.steps = "training" if event.steps else "evaluating", 0, event.steps
        self._show()

    def _advance_site(self, event: SiteStep) -> None:
        """Advance the site's bar."""
        with self._lock:
            self._round, row = event.round, self._rows.setdefault(event.site, _SiteRow())
            row.state, row.step, row.steps = "training", event.step, event.steps
            row.loss = row.loss if event.loss is None else event.loss

    def _end_site(self, event: SiteDone) -> None:
        """Show the site's loss, Dice and epsilon spent, or the reason for a failure."""
        line = event.line
        with self._lock:
            self._round, row = event.round, self._rows.setdefault(event.site, _SiteRow())
            if line.get("status", "ok") == "ok":
                row.state, row.step = f"done, {seconds_text(line)}", row.steps
                row.loss = row.loss if line.get("train_loss") is None else line["train_loss"]
                row.previous_dice, row.dice = row.dice, line.get("mean_dice")
                row.epsilon = line.get("epsilon")
            else:
                row.state = site_summary(line)
        self._show()

    def _end_round(self, event: RoundDone) -> None:
        """Print a summary of the round above the display."""
        line = event.line
        with self._lock:
            self._times.add(line)
            self._rounds_done = int(line["round"])
            self._round_started_at = self._clock()
        final = self._rounds_done > self._times.rounds
        name = "final evaluation" if final else f"round {self._rounds_done}/{self._times.rounds}"
        self._print(f"{name}: {round_summary(line)}, {seconds_text(line)}")

    def _print(self, text: str) -> None:
        """Print the text above the display."""
        # Not under our lock, to avoid a deadlock: Rich takes its own lock and then draws, which takes ours.
        live = self._live
        if live is not None:
            live.refresh()
        self._console.print(_lines(text), markup=False, highlight=False)

    def close(self) -> None:
        """Draw the final state and restore the cursor."""
        with self._lock:
            live, self._live, self._closed = self._live, None, True
        if live is not None:
            live.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _show(self) -> None:
        """Start the live display on the first call; later calls do nothing."""
        with self._lock:
            if self._live is None and not self._closed:
                self._live = Live(
                    console=self._console,
                    get_renderable=self._render,
                    refresh_per_second=4,
                    # Output to a pipe must not be redirected to the terminal.
                    redirect_stdout=sys.stdout.isatty(),
                    redirect_stderr=sys.stderr.isatty(),
                )
                self._live.start(refresh=True)

    def _render(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = []
            if self._rows:
                parts += [self._sites_table(), self._total_line()]
            if (stage := self._stage) is not None:
                parts.append(_bar_line(stage.text, stage.done, stage.total, f"{stage.done}/{stage.total}"))
            return Group(*parts)

    def _sites_table(self) -> RenderableType:
        phase = {"train": f"round {self._round} of {self._times.rounds}", "evaluate": "final evaluation"}
        title = f"{one_line(self._name)}  {phase.get(self._phase, '')}".rstrip()
        table = Table(
            box=None, pad_edge=False, padding=(0, 2, 0, 0), title=Text(title, style="bold"), title_justify="left"
        )
        table.add_column("site", no_wrap=True)
        table.add_column("", no_wrap=True, min_width=16)
        private = any(row.epsilon is not None for row in self._rows.values())
        for column in ("steps", "loss", "Dice", "change", *(("epsilon",) if private else ())):
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in self._visible_rows():
            bar = ProgressBar(total=row.steps, completed=row.step, width=16) if row.state == "training" else None
            table.add_row(
                Text(one_line(name), overflow="ellipsis"),
                bar if bar is not None else Text(one_line(row.state)),
                f"{row.step}/{row.steps}" if row.steps else "",
                number_text(row.loss),
                number_text(row.dice),
                _change(row),
                *((number_text(row.epsilon),) if private else ()),
            )
        hidden = len(self._rows) - len(self._visible_rows())
        if hidden:
            table.add_row(Text(f"and {hidden} more", style="dim"))
        return table

    def _visible_rows(self) -> list[tuple[str, _SiteRow]]:
        """Choose as many rows as fit the terminal, active sites first, and keep them in the run's order."""
        room = max(self._console.height - 7, 3)
        rows = list(self._rows.items())
        if len(rows) <= room:
            return rows
        active = [entry for entry in rows if entry[1].state in ("training", "evaluating")]
        kept = {name for name, _ in (active + [entry for entry in rows if entry not in active])[:room]}
        return [entry for entry in rows if entry[0] in kept]

    def _total_line(self) -> RenderableType:
        rounds = max(self._times.rounds, 1)
        in_round = sum(_share(row) for row in self._rows.values()) / len(self._rows) if self._running() else 0.0
        now = self._clock()
        note = f"{format_seconds(now - self._started_at)} so far"
        left = self._times.left(self._rounds_done, now - self._round_started_at)
        if left is not None and self._rounds_done < self._times.rounds:
            note += f", about {format_seconds(left)} left"
        return _bar_line("all rounds", min(self._rounds_done + in_round, rounds), rounds, note)

    def _running(self) -> bool:
        return self._phase == "train" and self._rounds_done < self._round


def _lines(text: str) -> str:
    return "\n".join(one_line(line) for line in text.splitlines())


def _share(row: _SiteRow) -> float:
    if row.state == "training":
        return row.step / row.steps if row.steps else 0.0
    return 0.0 if row.state in ("waiting", "evaluating") else 1.0


def _change(row: _SiteRow) -> str:
    if isinstance(row.dice, int | float) and isinstance(row.previous_dice, int | float):
        return f"{row.dice - row.previous_dice:+.3f}"
    return ""


def _bar_line(text: str, done: float, total: float, note: str) -> RenderableType:
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(Text(one_line(text)), ProgressBar(total=total, completed=done, width=28), Text(note))
    return line
