"""The summary of what left, against logs whose sums are known."""

from __future__ import annotations

from typing import Any

from client.consent.sent_summary import as_text, departures, summary
from common.audit import Entry


def entry(day: int, event: str = "sent", **details: Any) -> Entry:
    return Entry(1, f"2026-03-0{day}T10:00:00.000+00:00", event, details, "0" * 64, "1" * 64)


RUN = "aaaaaaaaaa"
LOG = [
    entry(1, "approved", bytes=10**9),
    entry(1, kind="hello", run=RUN, bytes=100, update=None, fields={"site": "a"}, sha256="a" * 64, epsilon=None),
    entry(1, run=RUN, round=1, bytes=4000, update="c" * 64, fields={"train_loss": 1}, sha256="b" * 64, epsilon=0.5),
    entry(2, run=RUN, round=2, bytes=0, error="paused", reason="PolicyError"),
    entry(2, run=RUN, round=2, bytes=4000, update="d" * 64, fields={"train_loss": 1}, sha256="b" * 64, epsilon=1.5),
    entry(2, run=RUN, round=3, bytes=200, update=None, fields={"train_loss": None}, sha256="e" * 64, epsilon=1.5),
]
OF_EARLIER_VERSIONS = [
    entry(1, kind="hello", run=RUN, bytes=100, tensors=[], fields={"info": {}}, sha256="a" * 64, epsilon=None),
    entry(1, run=RUN, round=1, bytes=10, tensors=[], fields={"progress": {}}, sha256="b" * 64, epsilon=None),
    entry(1, run=RUN, round=1, bytes=4000, tensors=[{}], fields={"numbers": {}}, sha256="c" * 64, epsilon=0.5),
    entry(2, run=RUN, round=3, bytes=200, tensors=[], fields={"numbers": {}}, sha256="e" * 64, epsilon=1.5),
]


def test_sums_by_day_and_round() -> None:
    content = summary(departures(LOG))
    assert content["total"]["messages"] == 5
    assert content["total"]["bytes"] == 8300
    assert content["epsilon"] == 1.5
    days = {day["day"]: (day["messages"], day["bytes"], day["kinds"]) for day in content["days"]}
    assert days == {
        "2026-03-01": (2, 4100, {"declarations": 1, "updates": 1}),
        "2026-03-02": (3, 4200, {"error codes": 1, "updates": 1, "scores": 1}),
    }
    rounds = [(line["round"], line["bytes"], line["sha256"]) for line in content["rounds"]]
    assert rounds == [(0, 100, []), (1, 4000, ["c" * 64]), (2, 4000, ["d" * 64]), (3, 200, [])]


def test_a_log_that_an_earlier_version_wrote_is_shown_as_then() -> None:
    content = summary(departures(OF_EARLIER_VERSIONS))
    assert content["total"]["kinds"] == {"declarations": 1, "signs of life": 1, "updates": 1, "scores": 1}
    assert content["rounds"][1]["sha256"] == ["c" * 64]


def test_text_shows_the_same() -> None:
    lines = as_text(summary(departures(LOG))).splitlines()
    assert lines[0] == "WHAT LEFT THIS BUILDING"
    assert any(line.split()[:3] == ["2026-03-01", "2", "4,100"] for line in lines)
    assert any(line.split()[:4] == ["aaaaaaaa", "1", "1", "4,000"] and line.endswith("c" * 12) for line in lines)
    assert any(line.startswith("all days") and "8,300" in line for line in lines)
    assert lines[-1] == "Differential-privacy budget spent: epsilon 1.50."


def test_nothing_left() -> None:
    assert as_text(summary(departures(LOG[:1]))).splitlines() == ["WHAT LEFT THIS BUILDING", "Nothing."]


def test_a_log_with_strange_values_is_still_shown() -> None:
    strange = [entry(1, bytes="many", fields=[], tensors=None, round=None, epsilon="x", run=3)]
    assert summary(departures(strange))["total"]["bytes"] == 0
    assert "3" in as_text(summary(departures(strange)))
