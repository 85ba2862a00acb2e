"""The journal of finished tasks: what it knows outlives the process, and damage costs a new payment, never less."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from client.runner.task_journal import KEPT, TaskJournal
from common.errors import OutputError

ONE, OTHER = "1" * 32, "2" * 32
UPDATE = "a" * 64


def test_an_attempt_that_was_broken_off_goes_on_under_its_name(tmp_path: Path) -> None:
    first = TaskJournal(tmp_path / "journal")
    assert first.find(ONE) is None and first.attempt() == ""
    record = first.begin(ONE)
    assert not record.is_done and first.attempt() == record.attempt != ""
    later = TaskJournal(tmp_path / "journal")
    assert later.attempt() == "", "nothing is under way yet"
    assert later.begin(ONE) == record and later.attempt() == record.attempt
    assert later.begin(OTHER).attempt != record.attempt


def test_an_answer_is_kept_and_ends_the_attempt(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "journal")
    journal.begin(ONE)
    journal.finish(ONE, '{"a": "é"}', UPDATE)
    assert journal.attempt() == ""
    found = TaskJournal(tmp_path / "journal").find(ONE)
    assert found is not None and found.is_done and (found.reply, found.update) == ('{"a": "é"}', UPDATE)
    with pytest.raises(ValueError, match="done"):
        journal.begin(ONE)
    assert journal.updates([ONE, OTHER]) == {UPDATE}


def test_a_failure_ends_the_attempt(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "journal")
    before = journal.begin(ONE)
    journal.forget(ONE)
    assert journal.attempt() == "" and journal.find(ONE) is None
    assert journal.begin(ONE).attempt != before.attempt
    journal.forget(OTHER)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"attempt": "a"}', '{"attempt": "", "reply": null, "update": null}']
)
def test_a_damaged_record_counts_as_none(tmp_path: Path, damage: str) -> None:
    journal = TaskJournal(tmp_path / "journal")
    before = journal.begin(ONE)
    (tmp_path / "journal" / f"{ONE}.json").write_text(damage)
    assert journal.find(ONE) is None
    assert (tmp_path / "journal" / f"{ONE}.json.damaged").read_text() == damage
    assert journal.begin(ONE).attempt != before.attempt


def test_the_record_of_another_task_counts_as_none(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "journal")
    journal.finish(OTHER, "{}", None)
    (tmp_path / "journal" / f"{OTHER}.json").rename(tmp_path / "journal" / f"{ONE}.json")
    assert journal.find(ONE) is None


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "x" * 32, "1" * 33])
def test_a_name_that_is_none_touches_no_file(tmp_path: Path, name: str) -> None:
    journal = TaskJournal(tmp_path / "journal")
    for call in (journal.find, journal.begin, journal.forget):
        with pytest.raises(ValueError, match="not a task name"):
            call(name)
    assert list(tmp_path.iterdir()) == []


def test_old_records_go_and_needed_ones_stay(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "journal")
    names = [f"{number:032x}" for number in range(KEPT + 5)]
    for age, name in enumerate(names):
        journal.finish(name, "{}", None)
        os.utime(tmp_path / "journal" / f"{name}.json", (1000 + age, 1000 + age))
    journal.trim([names[0]])
    assert sorted(file.stem for file in (tmp_path / "journal").iterdir()) == sorted([names[0], *names[-KEPT:]])


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    with pytest.raises(OutputError, match="journal: cannot be written"):
        TaskJournal(tmp_path / "journal").begin(ONE)
