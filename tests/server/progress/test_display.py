from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from server.progress.display import PlainProgress, make_progress
from server.progress.events import (
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
from server.progress.terminal import TerminalProgress
from server.progress.wording import RoundTimes
from tests.server.run_folder import round_line, site_line

SITES = ("north", "south")


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run_rounds(display: EventSink, rounds: int = 2) -> None:
    display(RunStarted("demo", rounds, SITES))
    for number in range(1, rounds + 2):
        line = round_line(number, rounds, SITES)
        display(RoundStarted(number, line["phase"]))
        for site in SITES:
            part = line["sites"][site]
            display(SiteStarted(number, site, part["steps"]))
            for step in range(1, part["steps"] + 1):
                display(SiteStep(number, site, step, part["steps"], 1 / step))
            display(SiteDone(number, site, part))
        display(RoundDone(line))


def terminal(height: int = 30) -> tuple[TerminalProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    console = Console(force_terminal=True, file=stream, width=100, height=height, color_system=None)
    return TerminalProgress(console, clock), stream, clock


def test_plain_lines_are_exact() -> None:
    stream = io.StringIO()
    with make_progress(stream) as display:
        run_rounds(display)
        display(Notice("report: runs/demo/report.html"))
    assert stream.getvalue().splitlines() == [
        "demo: 2 rounds, 2 sites: north, south",
        "round 1/2: north: loss 1.030, Dice 0.005, 12 s",
        "round 1/2: south: loss 1.050, Dice -0.007, 11 s",
        "round 1/2 done in 23 s, mean Dice -0.001 (model after round 0), about 23 s left",
        "round 2/2: north: loss 0.757, Dice 0.401, 12 s",
        "round 2/2: south: loss 0.777, Dice 0.389, 11 s",
        "round 2/2 done in 23 s, mean Dice 0.395 (model after round 1)",
        "final evaluation: north: Dice 0.619, 2.0 s",
        "final evaluation: south: Dice 0.607, 2.0 s",
        "final evaluation done in 4.4 s, mean Dice 0.613 (model after round 2)",
        "report: runs/demo/report.html",
    ]


def test_plain_names_sites_that_were_not_counted() -> None:
    stream = io.StringIO()
    display = PlainProgress(stream)
    display(RunStarted("demo", 1, SITES))
    display(SiteDone(1, "north", {"status": "refused", "reason": "not-finite"}))
    display(SiteDone(1, "south", {"status": "missing", "reason": None}))
    assert stream.getvalue().splitlines()[1:] == [
        "round 1/1: north: refused (not-finite)",
        "round 1/1: south: missing",
    ]


def test_plain_stages_are_throttled_but_their_end_is_told() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainProgress(stream, clock)
    for done in range(1, 221):
        clock.now += 0.05
        display(Stage("preparing scans", done, 220))
    display(Stage("preparing scans", 220, 220))
    display(Stage("measuring", 1, 1))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "preparing scans 1/220"
    assert lines[-2:] == ["preparing scans 220/220", "measuring 1/1"]
    assert len(lines) == 2 + 3 + 1  # 11 seconds of stages: the first, one every three seconds, the last; and another


def test_plain_writes_no_control_characters() -> None:
    stream = io.StringIO()
    display = PlainProgress(stream)
    display(RunStarted("demo\x1b[31m", 1, ("bad\rname\n",)))
    display(SiteDone(1, "bad\rname\n", site_line(1, 0, 1)))
    display(Notice("two\nlines\x07"))
    text = stream.getvalue()
    assert len(text.splitlines()) == 4
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_plain_survives_a_stream_that_cannot_write_a_name() -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding="ascii")
    PlainProgress(stream)(RunStarted("demo", 1, ("Zürich",)))
    assert data.getvalue() == b"demo: 1 round, 1 site: Z?rich\n"


def test_time_left_is_the_median_of_finished_training_rounds() -> None:
    times = RoundTimes(rounds=10)
    assert times.left(0) is None
    for seconds in (30.0, 10.0, 12.0):
        times.add({"round": 1, "phase": "train", "seconds": seconds})
    times.add({"round": 11, "phase": "evaluate", "seconds": 500.0})
    assert times.left(3) == 12.0 * 7
    assert times.left(3, elapsed=5.0) == 12.0 * 7 - 5
    assert times.left(3, elapsed=99.0) == 12.0 * 6  # a slow round eats no more than its own share
    assert times.left(10, elapsed=3.0) == 0.0


def test_terminal_shows_sites_rounds_and_time_left() -> None:
    display, stream, clock = terminal()
    with display:
        display(RunStarted("demo", 4, SITES))
        display(RoundStarted(1, "train"))
        display(SiteStarted(1, "north", 40))
        display(SiteStep(1, "north", 10, 40, 0.7654))
        display(SiteDone(1, "south", {"status": "failed", "reason": "no-data"}))
        display(RoundDone({"round": 1, "phase": "train", "seconds": 20.0, "mean_dice": 0.5}))
        clock.now += 3
        display(RoundStarted(2, "train"))
        clock.now += 5
        display(SiteStep(2, "north", 10, 40, 0.7654))
        display(SiteDone(2, "south", {"status": "ok", "train_loss": 0.25, "mean_dice": 0.875, "seconds": 2.0}))
    text = stream.getvalue()
    assert "failed (no-data)" in text
    assert "round 1/4: mean Dice 0.500 (model after round 0), 20 s" in text
    last = text[text.rindex("demo") :]
    assert "round 2 of 4" in last
    assert "10/40  0.765" in last
    assert "done, 2.0 s" in last
    assert "0.250  0.875" in last
    assert "8.0 s so far, about 55 s left" in last  # 3 rounds of 20 s, of which 5 s are over


def test_terminal_is_left_clean_after_an_exception() -> None:
    display, stream, _ = terminal()
    with pytest.raises(KeyboardInterrupt), display:
        display(RunStarted("demo", 2, SITES))
        display(Stage("preparing scans", 1, 3))
        raise KeyboardInterrupt
    text = stream.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert text.endswith("\x1b[?25h")
    display.close()
    display(Stage("preparing scans", 2, 3))
    assert stream.getvalue() == text


def test_terminal_takes_names_as_text_not_as_markup() -> None:
    display, stream, _ = terminal()
    with display:
        display(RunStarted("demo [bold]x", 1, ("[red]north",)))
        display(Notice("[blue]see report\x1b[2J"))
    text = stream.getvalue()
    assert "[red]north" in text
    assert "demo [bold]x" in text
    assert "[blue]see report" in text
    assert "\x1b[2J" not in text


def test_terminal_shows_working_sites_when_there_is_no_room_for_all() -> None:
    display, stream, _ = terminal(height=12)
    names = [f"site-{index:02d}" for index in range(40)]
    with display:
        display(RunStarted("demo", 1, tuple(names)))
        display(RoundStarted(1, "train"))
        display(SiteStarted(1, "site-39", 40))
    last = stream.getvalue()[stream.getvalue().rindex("demo") :]
    assert "site-39" in last
    assert "and 35 more" in last


def test_terminal_starts_over_for_a_second_run() -> None:
    display, stream, _ = terminal()
    with display:
        run_rounds(display)
        display(RunStarted("demo, pooled", 3, ("pooled",)))
    last = stream.getvalue()[stream.getvalue().rindex("demo, pooled") :]
    assert "north" not in last
    assert "left" not in last


def test_a_real_terminal_gets_the_live_display_and_its_cursor_back() -> None:
    code = (
        "from server.progress.display import make_progress\n"
        "from server.progress.events import RunStarted\n"
        "with make_progress() as display:\n"
        "    display(RunStarted('demo', 2, ('north',)))\n"
        "    raise KeyboardInterrupt\n"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, cwd=Path(__file__).parents[3], env=environment
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=20) != 0
    assert b"north" in output
    assert output.index(b"\x1b[?25l") < output.index(b"\x1b[?25h") < output.index(b"KeyboardInterrupt")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0), os.fdopen(theirs, "w") as stream, make_progress(stream) as display:
        assert isinstance(display, PlainProgress)


def test_importing_progress_imports_nothing_heavy() -> None:
    code = "import sys, server.progress; print(sorted({'rich', 'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


def test_privacy_spent_stands_beside_a_site_s_scores() -> None:
    line = site_line(1, 0, 2) | {"epsilon": 1.25}
    plain = io.StringIO()
    display, stream, _ = terminal()
    with display:
        for shown in (PlainProgress(plain), display):
            shown(RunStarted("demo", 2, SITES))
            shown(RoundStarted(1, "train"))
            shown(SiteDone(1, "north", line))
    assert plain.getvalue().splitlines()[-1].endswith(", epsilon 1.250")
    table = stream.getvalue()
    assert "epsilon" in table
    assert "1.250" in table


def test_without_privacy_nothing_is_said_of_it() -> None:
    plain = io.StringIO()
    display, stream, _ = terminal()
    with display:
        for shown in (PlainProgress(plain), display):
            run_rounds(shown)
    assert "epsilon" not in plain.getvalue() + stream.getvalue()
