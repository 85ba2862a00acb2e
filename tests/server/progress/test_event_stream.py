from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.progress.event_stream import PROGRESS_FILE, EventReader, EventWriter, LatestProgress
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
from tests.server.run_folder import round_line, site_line

EXAMPLES: list[Event] = [
    RunStarted("demo", 2, ("north", "Zürich")),
    Stage("reading scans", 1, 3),
    RoundStarted(1, "train"),
    RoundStarted(3, "evaluate"),
    SiteStarted(1, "north", 40),
    SiteStep(1, "north", 3, 40, 0.25),
    SiteStep(1, "Zürich", 3, 40, None),
    SiteDone(1, "north", site_line(1, 0, 2)),
    SiteDone(1, "south", {"status": "refused", "reason": "not-finite"}),
    RoundDone(round_line(1, 2)),
    Notice("two\nlines, a \x1b, \u2028 and a \r"),
    Notice(""),
]
DAMAGED = [
    b"",
    b"\0" * 64,
    b"\xff\xfe\xfd",
    b'["Notice", {"text": "cut o',
    b'["SiteS["Notice", {"text": "behind a line that a crash has cut"}]',
    b"null",
    b"7",
    b'"ab"',
    b"[]",
    b"{}",
    b'{"a": 1, "b": 2}',
    b'["Notice"]',
    b'["Notice", {"text": "one"}, 2]',
    b'["Notice", "text"]',
    b'["Notice", ["text"]]',
    b'["Notice", {}]',
    b'["Notice", {"text": null}]',
    b'["Unknown", {"text": "a"}]',
    b'["Event", {}]',
    b'[["Notice"], {"text": "a"}]',
    b'[{}, {"text": "a"}]',
    b'["RoundStarted", {"round": "first", "phase": "train"}]',
    b'["RoundStarted", {"round": 1, "phase": "rest"}]',
    b'["SiteDone", {"round": 1, "site": "north", "line": "ok"}]',
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
lines = st.dictionaries(st.text(), json_values)
losses = st.none() | st.floats(allow_nan=False)  # a number that is not one is not equal to itself
any_event = st.one_of(
    *(st.from_type(kind) for kind in (RunStarted, Stage, RoundStarted, SiteStarted, Notice)),
    st.builds(SiteStep, loss=losses),
    st.builds(SiteDone, line=lines),
    st.builds(RoundDone, line=lines),
)


def stream_of(folder: Path, *lines: bytes) -> EventReader:
    file = folder / PROGRESS_FILE
    file.parent.mkdir()
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return EventReader(folder)


def test_there_is_an_example_of_every_event() -> None:
    assert {type(event) for event in EXAMPLES} == set(get_args(Event))


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_is_one_line_and_read_back_as_it_was(tmp_path: Path, event: Event) -> None:
    EventWriter(tmp_path)(event)
    content = (tmp_path / PROGRESS_FILE).read_bytes()
    assert content.count(b"\n") == 1 and content.endswith(b"\n")
    assert json.loads(content)[0] == type(event).__name__
    assert EventReader(tmp_path).read() == [event]


@given(st.lists(any_event, max_size=5))
def test_any_events_are_read_back_in_their_order(events: list[Event]) -> None:
    with TemporaryDirectory() as folder:
        write = EventWriter(Path(folder))
        for event in events:
            write(event)
        assert EventReader(Path(folder)).read() == events


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_or_unknown_line_is_skipped(tmp_path: Path, line: bytes) -> None:
    good = json.dumps(["Notice", {"text": "after it"}]).encode()
    assert stream_of(tmp_path, good, line, good).read() == [Notice("after it")] * 2


def test_a_line_is_read_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    reader = EventReader(tmp_path)
    assert reader.read() == []
    write = EventWriter(tmp_path)
    write(RoundStarted(1, "train"))
    assert reader.read() == [RoundStarted(1, "train")]
    assert reader.read() == []
    file = tmp_path / PROGRESS_FILE
    with file.open("ab", buffering=0) as stream:
        stream.write(b'["Notice", {"text": ')
        assert reader.read() == []
        stream.write(b'"whole"}]\n')
    assert reader.read() == [Notice("whole")]


def test_what_an_earlier_start_wrote_can_be_skipped(tmp_path: Path) -> None:
    assert EventReader(tmp_path, only_new=True).read() == []
    write = EventWriter(tmp_path)
    write(Notice("before"))
    reader = EventReader(tmp_path, only_new=True)
    write(Notice("after"))
    assert reader.read() == [Notice("after")]


def test_the_latest_progress_is_that_of_the_current_round() -> None:
    latest = LatestProgress()
    assert (latest.round, latest.phase, latest.last_notice) == (None, None, "")
    for event in (
        Notice("waiting for sites"),
        RoundStarted(1, "train"),
        SiteStep(1, "north", 3, 40),
        SiteStep(1, "north", 4, 40),
        SiteDone(1, "south", {"status": "missing"}),
    ):
        latest(event)
    assert (latest.round, latest.phase, latest.last_notice) == (1, "train", "waiting for sites")
    assert (latest.steps, latest.done) == ({"north": (4, 40)}, {"south": "missing"})
    latest(RoundStarted(2, "evaluate"))
    assert (latest.round, latest.phase, latest.steps, latest.done) == (2, "evaluate", {}, {})
