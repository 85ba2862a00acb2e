"""The summary of what left, against logs whose sums are known."""

from __future__ import annotations

from typing import Any

from client.departures import as_text, departures, summary
from common.audit import Entry


def entry(day: int, event: str = "sent", **details: Any) -> Entry:
    return Entry(1, f"2026-03-0{day}T10:00:00.000+00:00", event, details, "0" * 64, "1" * 64)


LOG = [
    entry(1, "approved", bytes=10**9),
    entry(1, kind="hello", run="aaaaaaaaaa", bytes=100, tensors=[], fields={"info": {}}, sha256="a" * 64, epsilon=None),
    entry(1, run="aaaaaaaaaa", round=1, bytes=10, tensors=[], fields={"progress": {}}, sha256="b" * 64, epsilon=None),
    entry(1, run="aaaaaaaaaa", round=1, bytes=10, tensors=[], fields={"progress": {}}, sha256="b" * 64, epsilon=None),
    entry(1, run="aaaaaaaaaa", round=1, bytes=4000, tensors=[{}], fields={"numbers": {}}, sha256="c" * 64, epsilon=0.5),
    entry(2, run="aaaaaaaaaa", round=2, bytes=0, error="paused", reason="PolicyError"),
    entry(2, run="aaaaaaaaaa", round=2, bytes=4000, tensors=[{}], fields={"numbers": {}}, sha256="d" * 64, epsilon=1.5),
    entry(2, run="aaaaaaaaaa", round=3, bytes=200, tensors=[], fields={"numbers": {}}, sha256="e" * 64, epsilon=1.5),
]


def test_sums_by_day_and_round() -> None:
    content = summary(departures(LOG))
    assert content["total"]["messages"] == 7
    assert content["total"]["bytes"] == 8320
    assert content["epsilon"] == 1.5
    days = {day["day"]: (day["messages"], day["bytes"], day["kinds"]) for day in content["days"]}
    assert days == {
        "2026-03-01": (4, 4120, {"declarations": 1, "signs of life": 2, "updates": 1}),
        "2026-03-02": (3, 4200, {"error codes": 1, "updates": 1, "scores": 1}),
    }
    rounds = [(line["round"], line["bytes"], line["sha256"]) for line in content["rounds"]]
    assert rounds == [(0, 100, []), (1, 4020, ["c" * 64]), (2, 4000, ["d" * 64]), (3, 200, [])]


def test_text_shows_the_same() -> None:
    lines = as_text(summary(departures(LOG))).splitlines()
    assert lines[0] == "WHAT LEFT THIS BUILDING"
    assert any(line.split()[:3] == ["2026-03-01", "4", "4,120"] for line in lines)
    assert any(line.split()[:4] == ["aaaaaaaa", "1", "3", "4,020"] and line.endswith("c" * 12) for line in lines)
    assert any(line.startswith("all days") and "8,320" in line for line in lines)
    assert lines[-1] == "Differential-privacy budget spent: epsilon 1.50."


def test_nothing_left() -> None:
    assert as_text(summary(departures(LOG[:1]))).splitlines() == ["WHAT LEFT THIS BUILDING", "Nothing."]


def test_a_log_with_strange_values_is_still_shown() -> None:
    strange = [entry(1, bytes="many", fields=[], tensors=None, round=None, epsilon="x", run=3)]
    assert summary(departures(strange))["total"]["bytes"] == 0
    assert "3" in as_text(summary(departures(strange)))
