"""Queue of studies: each result gets to each outbox once, and a bad study stops no other."""

import contextlib
import errno
import os
from hashlib import sha256
from pathlib import Path

import pytest

from client.node.folders import ATTEMPTS_FILE, RESULTS, STUDY_FILE, NodeFolders, names_in, read_note, write_note
from client.node.studies import MOST_ATTEMPTS, SeriesOutcome, StudyQueue
from common.errors import OutputError
from tests.client.node.studies import Killed, killed_at, one_result_each, put_waiting

RESULT = f"2.{sha256(b'1.2.3').hexdigest()[:16]}.dcm"
DESTINATIONS = ["pacs", "archive"]


@pytest.fixture
def folders(tmp_path: Path) -> NodeFolders:
    return made(tmp_path / "state")


def made(root: Path) -> NodeFolders:
    folders = NodeFolders(root)
    with folders.locked():
        return folders


def test_results_go_to_every_outbox(folders: NodeFolders) -> None:
    put_waiting(folders, "1.1", "1.2.3")
    queue = StudyQueue(folders, one_result_each, DESTINATIONS)
    assert queue.work() and not queue.work()
    for name in DESTINATIONS:
        assert names_in(folders.outbox / name) == [RESULT]
    assert names_in(folders.done) == ["1.1"] and not names_in(folders.waiting)


def test_in_shadow_mode_results_stay_here(folders: NodeFolders) -> None:
    put_waiting(folders, "1.1", "1.2.3")
    assert StudyQueue(folders, one_result_each, []).work()
    assert not names_in(folders.outbox)
    assert (folders.done / "1.1" / RESULTS / RESULT).read_text() == "a result"


@pytest.mark.parametrize("place", ["outbox", "unsent"])
def test_a_damaged_result_does_not_block_its_replacement(folders: NodeFolders, place: str) -> None:
    home = getattr(folders, place) / "pacs"
    home.mkdir()
    (home / RESULT).write_text("a res")
    write_note((home / RESULT).with_suffix(".json"), {"reason": "damaged"})
    put_waiting(folders, "1.1", "1.2.3")
    StudyQueue(folders, one_result_each, ["pacs"]).work()
    assert (folders.outbox / "pacs" / RESULT).read_text() == "a result"
    assert names_in(folders.outbox / "pacs") == [RESULT] and not names_in(folders.unsent / "pacs")


@pytest.mark.parametrize("place", ["sent", "unsent"])
def test_a_result_that_has_left_its_outbox_does_not_come_back(folders: NodeFolders, place: str) -> None:
    queue = StudyQueue(folders, one_result_each, ["pacs"])
    for _ in range(2):
        put_waiting(folders, "1.1", "1.2.3")
        queue.work()
        for name in names_in(folders.outbox / "pacs"):
            (getattr(folders, place) / "pacs").mkdir(exist_ok=True)
            (folders.outbox / "pacs" / name).rename(getattr(folders, place) / "pacs" / name)
        assert names_in(getattr(folders, place) / "pacs") == [RESULT]
    assert not names_in(folders.outbox / "pacs")


def test_a_bad_study_is_set_aside_with_the_reason(folders: NodeFolders) -> None:
    def segment(instances: Path, results: Path) -> list[SeriesOutcome]:
        one_result_each(instances, results)
        return [SeriesOutcome("series 1", "segmented"), SeriesOutcome("series 2", "refused", "has missing slices")]

    put_waiting(folders, "1.1", "1.2.3")
    StudyQueue(folders, segment, ["pacs"]).work()
    note = read_note(folders.set_aside / "1.1" / RESULTS / STUDY_FILE)
    assert note["series"][1]["reason"] == "has missing slices"
    assert names_in(folders.outbox / "pacs") == [RESULT]  # what could be segmented is sent all the same


def test_a_bug_sets_the_study_aside_and_the_next_goes_on(folders: NodeFolders) -> None:
    def segment(instances: Path, results: Path) -> list[SeriesOutcome]:
        if instances.parent.name == "1.1":
            raise ZeroDivisionError
        return one_result_each(instances, results)

    put_waiting(folders, "1.1", "1.2.3")
    put_waiting(folders, "1.2", "1.2.4")
    queue = StudyQueue(folders, segment, ["pacs"])
    assert queue.work() and queue.work()
    assert names_in(folders.set_aside) == ["1.1"] and names_in(folders.done) == ["1.2"]


def test_a_full_disk_is_not_the_fault_of_the_study(folders: NodeFolders) -> None:
    def segment(instances: Path, results: Path) -> list[SeriesOutcome]:
        raise OutputError("no space left")

    study = put_waiting(folders, "1.1", "1.2.3")
    for _ in range(MOST_ATTEMPTS + 1):
        with pytest.raises(OutputError):
            StudyQueue(folders, segment, ["pacs"]).work()
    assert read_note(study / ATTEMPTS_FILE) == {"attempts": 0}
    assert StudyQueue(folders, one_result_each, ["pacs"]).work()
    assert names_in(folders.done) == ["1.1"]


def test_a_study_that_ends_the_process_lets_others_pass_and_is_set_aside(folders: NodeFolders) -> None:
    done: list[str] = []

    def segment(instances: Path, results: Path) -> list[SeriesOutcome]:
        if instances.parent.name == "1.1":
            raise Killed
        done.append(instances.parent.name)
        return one_result_each(instances, results)

    put_waiting(folders, "1.1", "1.2.3")
    kills = 0
    while names_in(folders.waiting):
        try:
            StudyQueue(folders, segment, ["pacs"]).work()
        except Killed:
            kills += 1
            if kills == 1:
                put_waiting(folders, "1.2", "1.2.4")
        else:
            assert kills in (1, MOST_ATTEMPTS)
    assert done == ["1.2"] and kills == MOST_ATTEMPTS
    (outcome,) = read_note(folders.set_aside / "1.1" / RESULTS / STUDY_FILE)["series"]
    assert outcome["reason"] == f"ended the process {MOST_ATTEMPTS} times"


def test_a_damaged_count_of_attempts_is_none(folders: NodeFolders) -> None:
    study = put_waiting(folders, "1.1", "1.2.3")
    write_note(study / ATTEMPTS_FILE, {"attempts": "many"})
    assert StudyQueue(folders, one_result_each, ["pacs"]).work()


def test_each_result_is_handed_on_once_after_a_kill_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(100):
        folders = made(tmp_path / str(step))
        put_waiting(folders, "1.1", "1.2.3")
        with killed_at(step, monkeypatch) as steps:
            with contextlib.suppress(Killed):
                StudyQueue(folders, one_result_each, DESTINATIONS).work()
            done = steps()
        for name in DESTINATIONS:  # what the sender did meanwhile
            for result in names_in(folders.outbox / name):
                (folders.sent / name).mkdir(exist_ok=True)
                (folders.outbox / name / result).rename(folders.sent / name / result)
        while StudyQueue(made(folders.root), one_result_each, DESTINATIONS).work():
            pass
        assert names_in(folders.done) == ["1.1"] and not names_in(folders.waiting)
        for name in DESTINATIONS:
            found = names_in(folders.sent / name) + names_in(folders.outbox / name)
            assert found == [RESULT]
        if done < step:
            assert step > 5
            return
    pytest.fail("it never came to its end")


def test_what_is_no_study_holds_up_none(folders: NodeFolders) -> None:
    (folders.waiting / "notes.txt").write_text("notes")
    (folders.waiting / "lost+found").mkdir()
    put_waiting(folders, "1.1", "1.2.3")
    queue = StudyQueue(folders, one_result_each, ["pacs"])
    assert queue.work() and not queue.work()
    assert names_in(folders.done) == ["1.1"] and names_in(folders.waiting) == ["lost+found", "notes.txt"]


@pytest.mark.parametrize("note", [{"series": [{"name": "x", "result": "ok"}]}, {"series": 3}, {"outcomes": []}, None])
def test_results_with_a_note_of_another_version_are_made_again(
    folders: NodeFolders, note: dict[str, object] | None
) -> None:
    study = put_waiting(folders, "1.1", "1.2.3")
    (study / RESULTS).mkdir()
    if note is not None:
        write_note(study / RESULTS / STUDY_FILE, note)
    assert StudyQueue(folders, one_result_each, ["pacs"]).work()
    assert names_in(folders.done) == ["1.1"] and names_in(folders.outbox / "pacs") == [RESULT]


def test_a_study_that_cannot_be_written_goes_behind_the_others(folders: NodeFolders) -> None:
    def segment(instances: Path, results: Path) -> list[SeriesOutcome]:
        if instances.parent.name == "1.1":
            raise OSError(errno.EIO, "a bad sector")
        return one_result_each(instances, results)

    put_waiting(folders, "1.1", "1.2.3")
    os.utime(folders.waiting / "1.1", (1, 1))
    put_waiting(folders, "1.2", "1.2.4")
    queue = StudyQueue(folders, segment, ["pacs"])
    with pytest.raises(OutputError):
        queue.work()
    assert queue.work()
    assert names_in(folders.done) == ["1.2"] and names_in(folders.waiting) == ["1.1"]
