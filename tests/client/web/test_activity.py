"""A site as its processes leave it: running, training, stopped, and with odd logs."""

from __future__ import annotations

import time

import pytest

from client.runner.progress import RunnerStatus
from client.state_folder import StateFolder, write_json
from client.web.activity import LONGEST_LINE, MOST_LINES, last_lines
from client.web.place import Place
from common.audit import AuditLog
from tests.client.web.hospital import shell_of, visitor, words


def test_a_site_that_does_not_run(place: Place) -> None:
    shown = words(visitor(place).get("/live"))
    assert "not running" in shown and "There are no logs yet." in shown and "reported no round yet" in shown


def test_a_round_is_shown_with_steps_and_loss_and_a_clock_that_jumps_makes_no_age_negative(place: Place) -> None:
    folder = StateFolder(place.state)
    with folder.locked():
        status = RunnerStatus(folder.runner)
        pid = status._content["pid"]
        ahead = {"state": "ready", "pid": pid, "since": time.time() + 3600, "restarts": 2}
        write_json(folder.status, {"role": "site", "processes": {"courier": ahead, "runner": ahead}})
        status.state("working")
        client = visitor(place)
        assert "Working on a task." in words(client.get("/live"))
        status._written = 0.0
        status.site_step(7, "north", 3, 40, 0.12345)
        shown = words(client.get("/live"))
        assert "Round 7: step 3 of 40. Loss 0.1235." in shown
        assert "reads scans and trains ready 0 s 2" in shown
        status.say(problem="the data cannot be used: <b>x</b>")
        answer = client.get("/live")
        assert "the data cannot be used" in words(answer) and "<b>x" not in answer.text


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_a_loss_that_is_no_number_is_not_shown(place: Place, loss: float | None) -> None:
    folder = StateFolder(place.state)
    with folder.locked():
        status = RunnerStatus(folder.runner)
        write_json(folder.status, {"role": "site", "processes": {"runner": {"pid": status._content["pid"]}}})
        status.state("working")
        status._written = 0.0
        status.site_step(1, "north", 1, 2, loss)
        shown = words(visitor(place).get("/live"))
        assert "step 1 of 2." in shown and "Loss" not in shown.partition("Processes")[0]


def test_rounds_that_were_reported_are_those_of_the_audit_log(place: Place) -> None:
    log = AuditLog(place.state / "audit.jsonl")
    for number, loss in ((1, 0.9), (2, None), (3, 0.3)):
        log.append("sent", kind="train", round=number, fields={"train_loss": loss, "dice": {"1": 0.5, "2": 0.7}})
    log.append("sent", kind="hello", fields={"site": "north"})
    answer = visitor(place).get("/live")
    shown = words(answer)
    assert shown.index(" 0.3000 0.600") < shown.index(" 0.9000 0.600")
    assert "polyline" in answer.text


def test_logs_are_bounded_escaped_and_without_secrets(place: Place) -> None:
    file = StateFolder(place.state).logs / "runner.log"
    odd = "\x1b[31mred <script>\nvia http://user:pa55@proxy:3128 password=pa55, token: pa55\n" + "x" * 10_000 + "\n"
    file.write_text("old line\n" * 100_000 + odd, encoding="utf-8")
    lines = last_lines(file)
    assert len(lines) == MOST_LINES and len(lines[-1]) == LONGEST_LINE + 1
    answer = visitor(place).get("/live")
    assert "pa55" not in answer.text and "\x1b" not in answer.text and "<script>\n" not in answer.text
    assert "proxy:3128" in answer.text and "red &lt;script&gt;" in answer.text
    file.write_bytes(b"\xff\xfe no text\n")
    assert last_lines(file) == ["\\xff\\xfe no text"]


def test_news_is_news_of_the_site_and_not_of_the_time(place: Place) -> None:
    folder = StateFolder(place.state)
    side = shell_of(place)._side
    with folder.locked():
        status = RunnerStatus(folder.runner)
        write_json(folder.status, {"role": "runner", "processes": {"runner": {"pid": status._content["pid"]}}})
        status.state("waiting")
        before = side.watch()["activity"]
        status._written = -1e9
        status.state("waiting")
        assert side.watch()["activity"] == before
        status.state("working")
        assert side.watch()["activity"] != before
