from __future__ import annotations

from pathlib import Path

from common.audit import AuditLog, read_entries
from server.coordinator.server_app import audited
from server.progress.events import Event, Notice, RoundDone, RoundStarted, SiteDone, SiteStep

SITE = {"status": "ok", "reason": None, "examples": 10, "epsilon": 1.5, "sha256": "ab" * 32}


def test_rounds_go_into_the_audit_log_and_every_event_is_passed_on(tmp_path: Path) -> None:
    seen: list[Event] = []
    emit = audited(seen.append, AuditLog(tmp_path / "audit.jsonl"))
    line = {"round": 1, "phase": "train", "bytes_up": 5, "bytes_down": 7, "mean_dice": 0.5}
    events = [
        Notice("waiting for sites"),
        RoundStarted(1, "train"),
        SiteStep(1, "north", 1, 2),
        SiteDone(1, "north", SITE | {"mean_dice": 0.5}),
        RoundDone(line | {"sites": {"north": SITE | {"mean_dice": 0.5}}}),
    ]
    for event in events:
        emit(event)
    assert seen == events
    started, done = read_entries(tmp_path / "audit.jsonl")
    assert (started.event, started.details) == ("round_started", {"round": 1, "phase": "train"})
    counts = {"round": 1, "phase": "train", "bytes_up": 5, "bytes_down": 7}
    assert (done.event, done.details) == ("round_done", counts | {"sites": {"north": SITE}})
