"""What left, the proof, and what a broken log or a clock that jumps does to them."""

from __future__ import annotations

import json

from client.consent.decisions import DecisionBook
from client.state_folder import AUDIT_FILE
from client.web import trail
from client.web.place import Place
from common.audit import AuditLog, verify
from common.web.rendering import moment
from tests import kits
from tests.client.web.hospital import visitor, words


def leave(place: Place, count: int) -> AuditLog:
    """Write entries of messages that left."""
    log = AuditLog(place.state / AUDIT_FILE)
    for number in range(1, count + 1):
        update = {"fields": {"train_loss": 1.0}, "bytes": 1000 + number, "sha256": "b" * 64, "epsilon": 0.5 * number}
        log.append("sent", kind="train", run="a" * 32, round=number, update=f"{number:064x}", **update)
    return log


def test_an_empty_log_is_no_error(place: Place) -> None:
    client = visitor(place)
    for file in place.state.glob("audit.jsonl*"):
        file.unlink()
    shown = words(client.get("/sent"))
    assert "There is no log yet." in shown and "Nothing." in shown


def test_every_task_with_size_and_digest_and_the_proof(place: Place) -> None:
    kits.approve(place.kit, place.state, place.consent)
    leave(place, 3)
    client = visitor(place)
    shown = words(client.get("/sent"))
    for number in (1, 2, 3):
        assert f"updates aaaaaaaa {number} 1,00{number} {number:064x}" in shown
    assert "Messages 3 Bytes 3,006 updates 3" in shown and "Highest epsilon sent to this federation 1.50" in shown
    proof = verify(place.state / AUDIT_FILE)
    assert "The log has 5 entries" in shown and proof.head in shown
    assert "approved" in shown and "Dr. A" in shown
    DecisionBook(place.state, place.consent).pause("Dr. B")
    assert "The log has 6 entries" in words(client.get("/sent")), "the page follows the log"


def test_a_broken_log_is_said_with_what_can_be_read(place: Place) -> None:
    leave(place, 3)
    log = place.state / AUDIT_FILE
    log.write_bytes(log.read_bytes().replace(b'"bytes":1002', b'"bytes":1'))
    shown = words(visitor(place).get("/sent"))
    assert "The log is not whole" in shown and "line 2: was edited" in shown and "1,003" in shown
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:1]))
    assert "the end was cut off" in words(visitor(place).get("/sent"))
    log.unlink()
    assert "is gone" in words(visitor(place).get("/sent"))


def test_a_log_without_an_approval_was_replaced(place: Place) -> None:
    kits.approve(place.kit, place.state, place.consent)
    for file in place.state.glob("audit.jsonl*"):
        file.unlink()
    leave(place, 1)
    assert "lacks the approval" in words(visitor(place).get("/sent"))


def test_a_clock_that_went_back_is_said_and_changes_no_order(place: Place) -> None:
    log = place.state / AUDIT_FILE
    leave(place, 1)
    first = json.loads(log.read_text(encoding="utf-8"))["time"]
    leave(place, 2)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    lines[1]["time"] = "2001-01-01T00:00:00.000+00:00"
    log.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")
    shown = words(visitor(place).get("/sent"))
    assert f"clock went back, from {moment(first)} to 2001-01-01 00:00:00" in shown
    table = shown.partition("Task by task")[2]
    assert table.index("1,002") < table.index("1,001"), "the newest is first, whatever its time"


def test_a_long_log_is_shown_in_parts(place: Place) -> None:
    leave(place, trail.MOST_ROWS + 1)
    client = visitor(place)
    assert f"{1:064x}" not in client.get("/sent").text
    assert f"{1:064x}" in client.get("/sent?page=2").text
    for odd in ("0", "99999999", "-1", "x" * 50, "²", "9" * 400):
        assert client.get("/sent", params={"page": odd}).status_code == 200
