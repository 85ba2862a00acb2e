"""Every route of the coordinator's page, from its own table: who is let in, what is written down, and what is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.audit import Entry, verify
from common.errors import FedvoxError
from common.web.shell import Address, Shell
from common.web.visits import Role
from server.run_store.folder import AUDIT_FILE
from server.run_store.locks import only_start
from server.run_store.record_reader import MOST_EVENT_BYTES, read_training
from server.web.side import check_folders, server_side
from tests.client.consent.test_disclosure import write_kit
from tests.common.web import gate
from tests.common.web.side import HOST, SAME_ORIGIN, csrf_of, signed_in
from tests.hostile import obeyed
from tests.server.run_folder import write_json_lines
from tests.server.web.runs import write_live_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_live_run(tmp_path / "run")


def shell_of(run: Path) -> Shell:
    return Shell(server_side([run]), Address((HOST,), 8750))


def written(run: Path) -> list[Entry]:
    return gate.written(run / AUDIT_FILE)


def test_only_the_right_people_are_let_in_anywhere(run: Path) -> None:
    shell = shell_of(run)
    assert len(list(gate.actions(shell))) >= 3
    gate.check_that_strangers_see_nothing(shell)
    gate.check_that_only_those_who_may_act_do(shell, lambda: written(run))
    assert not written(run)


def test_every_action_is_written_down_with_who_did_it(tmp_path: Path) -> None:
    run = write_live_run(tmp_path / "run", rounds=1)
    gate.check_that_every_action_is_written_down(shell_of(run), lambda: written(run))


def test_every_answer_keeps_the_policy(run: Path) -> None:
    gate.check_that_every_answer_keeps_the_policy(shell_of(run))


def test_no_path_leads_elsewhere(run: Path) -> None:
    gate.check_that_no_path_leads_elsewhere(shell_of(run))


def test_a_kit_of_either_side_is_no_run(tmp_path: Path) -> None:
    write_kit(tmp_path / "kit")
    with pytest.raises(FedvoxError, match="is a kit, not a run"):
        check_folders([tmp_path / "kit"])


def test_a_report_that_is_a_link_to_another_file_is_not_given(run: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("private", encoding="utf-8")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(tmp_path / "key.pem")
    answer = signed_in(shell_of(run), Role.ACT).get("/runs/0/report")
    assert answer.status_code == 404
    assert "private" not in answer.text


def test_two_pages_on_one_run_write_one_log(run: Path) -> None:
    pages = [signed_in(shell_of(run), Role.ACT) for _ in range(2)]
    for number in (1, 2, 3, 4):
        page = pages[number % 2]
        form = {"csrf": csrf_of(page, "/runs/0"), "role": "look"}
        assert page.post("/links", data=form, headers=SAME_ORIGIN).status_code == 303
        assert verify(run / AUDIT_FILE).entries == 2 + number  # beside two who signed in
    other = signed_in(shell_of(run), Role.LOOK)
    form = {"csrf": csrf_of(pages[0], "/runs/0"), "role": "look"}
    assert pages[1].post("/links", data=form, headers=SAME_ORIGIN).status_code == 403
    assert other.post("/links", data=form, headers=SAME_ORIGIN).status_code == 403


def test_a_flood_of_events_makes_no_page_larger_or_slower(run: Path) -> None:
    line = json.dumps({"time": "2026-01-05T09:07:37+00:00", "event": "site_left", "site": "raw-low", "x": "y" * 2000})
    with (run / "events.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for _ in range(10_000))
        stream.write(line.replace("site_left", "the last of all") + "\n")
    assert (run / "events.jsonl").stat().st_size / 50 > MOST_EVENT_BYTES
    page = signed_in(shell_of(run), Role.LOOK).get("/runs/0")
    assert "the last of all" in page.text
    assert "is invalid and was ignored" not in page.text
    assert len(page.content) < 100_000
    assert len(read_training(run).events) < 150


EVIL = "<script>alert('x')</script>\x1b[31m\u202e\"><img src=x onerror=y>{{ 7 * 7 }}"


def poisoned(value: Any, is_named: bool = False) -> Any:
    """JSON values with every text, and every name that somebody chose, made hostile."""
    if isinstance(value, dict):
        named = ("sites", "refused", "processes", "dice")
        return {key + EVIL * is_named: poisoned(item, key in named) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + EVIL if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["rounds.jsonl", "events.jsonl", "partition.json", "summary.json", "status.json"])
def test_whatever_a_file_says_is_only_text(run: Path, name: str) -> None:
    write_json_lines(run / "events.jsonl", [{"time": "now", "event": "site_unusable", "reason": "none"}])
    if name == "summary.json":
        (run / name).write_text(json.dumps({"labels": {"1": "head"}, "parameters": 5}), encoding="utf-8")
    lines = (run / name).read_text(encoding="utf-8").splitlines()
    if name == "events.jsonl":
        lines.append(json.dumps({"event": "odd", EVIL: {EVIL: [EVIL]}}))
    whole = lines if name.endswith(".jsonl") else ["".join(lines)]
    (run / name).write_text("".join(f"{json.dumps(poisoned(json.loads(line)))}\n" for line in whole), encoding="utf-8")
    client, shown = signed_in(shell_of(run), Role.ACT), 0
    with only_start(run):
        for path in ("/runs/0", "/runs/0?lang=de", "/runs/0/rounds", "/runs/0/curves/dice", "/curves"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert not obeyed(answer.text) and not obeyed("".join(answer.headers.values()))
            if "html" in answer.headers["content-type"]:
                assert "<script>alert" not in answer.text and "<img" not in answer.text
            shown += "alert(" in answer.text
    assert shown or name in ("partition.json", "summary.json"), "the page shows some of it"


def test_a_file_that_is_cut_or_overwritten_anywhere_is_shown_as_far_or_named(run: Path) -> None:
    client = signed_in(shell_of(run), Role.LOOK)
    names = ("federation.yaml", "rounds.jsonl", "state.json", "status.json", "partition.json", "events.jsonl")
    for name in names:
        whole = (run / name).read_bytes()
        for damaged in (
            b"",
            whole[:-1],
            whole[: len(whole) // 3],
            b"\xff\x00" + whole,
            b"[]",
            b'{"sites": 5}',
            b"null",
        ):
            (run / name).write_bytes(damaged)
            answer = client.get("/runs/0")
            assert answer.status_code in (200, 503), (name, damaged[:20])
            assert answer.status_code == 200 or str(run) in answer.text, (name, damaged[:20])
        (run / name).write_bytes(whole)
    assert "6 / 12" in client.get("/runs/0").text
