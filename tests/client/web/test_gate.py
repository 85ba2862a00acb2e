"""Every route of the hospital's page, from its own table: who is let in, and what is written down."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from client.state_folder import AUDIT_FILE, StateFolder, write_json
from client.web.jobs import Jobs, Work
from client.web.place import Place
from client.web.side import hospital_side
from common.audit import AuditLog, Entry
from common.web.shell import Address, Shell
from common.web.visits import Role
from tests.client.web.hospital import do, shell_of
from tests.common.web import gate
from tests.common.web.side import HOST, signed_in
from tests.hostile import obeyed


def written(place: Place) -> list[Entry]:
    return gate.written(place.state / AUDIT_FILE)


def test_only_the_right_people_are_let_in_anywhere(place: Place) -> None:
    shell = shell_of(place)
    assert len(list(gate.actions(shell))) >= 9
    gate.check_that_strangers_see_nothing(shell)
    gate.check_that_only_those_who_may_act_do(shell, lambda: written(place))
    assert not written(place)


def test_every_action_is_written_down_with_who_did_it(place: Place) -> None:
    gate.check_that_every_action_is_written_down(shell_of(place), lambda: written(place))


def test_every_answer_keeps_the_policy(place: Place) -> None:
    gate.check_that_every_answer_keeps_the_policy(shell_of(place))


def test_no_path_leads_elsewhere(place: Place) -> None:
    gate.check_that_no_path_leads_elsewhere(shell_of(place))


EVIL = "<script>alert('x')</script>\x1b[31m\u202e\"><img src=x onerror=y>{{ 7 * 7 }}"


def test_whatever_a_file_a_log_or_a_scan_says_is_only_text(place: Place, tmp_path: Path) -> None:
    log = AuditLog(place.state / AUDIT_FILE)
    log.append("sent", kind=EVIL, run=EVIL, round=1, update=EVIL, fields={"train_loss": 1.0, EVIL: EVIL}, bytes=5)
    log.append(EVIL, who=EVIL, about={EVIL: EVIL})
    folder = StateFolder(place.state)
    (folder.logs / "runner.log").write_text(f"{EVIL}\n", encoding="utf-8")
    jobs = Jobs(tmp_path / "page.log")
    case = {"name": EVIL, "usable": False, "shape": [1, 2, 3], "spacing_mm": None, "orientation": EVIL}
    texts = ("number", "description", "modality", "case", "outcome", "reason")
    series = dict.fromkeys(texts, EVIL) | {"files": 1}
    report = {
        "pictures": [{"case": EVIL, "number": 0, "size": [5, 6], "problem": EVIL}],
        "problems": [{"case": EVIL, "severity": EVIL, "problem": EVIL, "file": EVIL}],
        "cases": [case | {"label_ml": {"1": 2.0}}],
        "labels": {"1": EVIL},
        "usable": False,
        "patients": None,
        "layout": EVIL,
        "studies": [{"series": [series]}],
    }
    segmented = {
        "received": EVIL,
        "model": EVIL,
        "labels": {"1": EVIL},
        "dice": {EVIL: 0.5},
        "slices": [3],
        "size": [20, 30],
    }
    preflight = [{"name": EVIL, "severity": EVIL, "text": EVIL}]
    for kind, result in (("check", report), ("cases", [EVIL]), ("segment", segmented), ("preflight", preflight)):
        jobs._last[kind] = Work(kind, {"case": EVIL}, result=result, has_ended=True)
    place = dataclasses.replace(place, data=tmp_path / "scans")
    shell = Shell(hospital_side(place, jobs, tmp_path), Address((HOST,), 8750))
    client = signed_in(shell, Role.ACT)
    do(client, "/pause", name=EVIL, digest="")
    with folder.locked():
        pid = os.getpid()
        write_json(folder.status, {"role": "site", "processes": {EVIL: {"pid": pid, "state": EVIL}}})
        write_json(folder.runner, {"pid": pid} | dict.fromkeys(("state", "problem", "notice", "network"), EVIL))
        for path in ("/", "/sent", "/live", "/privacy", "/data", "/scans", "/scans/0", "/live?lang=de"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert not obeyed(answer.text), path
            assert "<script>alert" not in answer.text and "<img src=x" not in answer.text, path
            assert ("alert(" in answer.text) is (path != "/privacy"), path
