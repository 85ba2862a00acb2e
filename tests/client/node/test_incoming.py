"""Incoming: instances become complete studies, whatever comes twice, late, in between or is interrupted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from client.node.folders import INSTANCES, NodeFolders, names_in
from client.node.incoming import Incoming
from client.node.studies import StudyQueue
from client.pacs.receiver import NOT_UNDERSTOOD, OTHER_KIND, OUT_OF_RESOURCES, Line, NotStoredError
from tests.client.node.studies import Clock, Killed, arrival, instances_in, killed_at, one_result_each, uids
from tests.dicom_series import make_series, set_pixels

SETTLE = 60.0


class Case:
    """A node's folders with what takes instances, and a clock."""

    def __init__(self, root: Path, most_waiting: int = 10, keep_free: int = 0) -> None:
        self.folders = NodeFolders(root)
        with self.folders.locked():
            pass
        self.clock = Clock()
        self.incoming = Incoming(self.folders, SETTLE, most_waiting, keep_free, self.clock)

    def take(self, *series: Dataset) -> None:
        for one in series:
            self.incoming.keep(arrival(one))

    def settle(self, after: float = SETTLE) -> list[str]:
        self.clock.now += after
        return self.incoming.settle()

    def segment(self) -> None:
        assert StudyQueue(self.folders, one_result_each, []).work()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "state")


def test_a_study_is_complete_when_nothing_came_for_a_while(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    series = make_series()
    with caplog.at_level("INFO", "fedvox.node"):
        case.take(*series[:4])
    assert [one.getMessage() for one in caplog.records] == [f"study {series[0].StudyInstanceUID} comes from MODALITY"]
    assert case.settle(SETTLE - 1) == []
    case.take(*series[4:])
    assert case.settle(SETTLE - 1) == []
    study = series[0].StudyInstanceUID
    assert case.settle(1) == [study]
    assert instances_in(case.folders.waiting / study) == uids(series)
    assert names_in(case.folders.incoming) == names_in(case.folders.receiving) == []


def test_interleaved_studies_are_kept_apart(case: Case) -> None:
    first, second = make_series(), make_series()
    for one, other in zip(first, second, strict=True):
        case.take(one, other)
    assert set(case.settle()) == {first[0].StudyInstanceUID, second[0].StudyInstanceUID}
    for series in (first, second):
        assert instances_in(case.folders.waiting / series[0].StudyInstanceUID) == uids(series)


def test_an_instance_that_comes_twice_is_there_once(case: Case) -> None:
    series = make_series()
    case.take(*series, *series)
    (study,) = case.settle()
    assert instances_in(case.folders.waiting / study) == uids(series)


def test_a_study_that_comes_again_changes_nothing(case: Case) -> None:
    series = make_series()
    case.take(*series)
    (study,) = case.settle()
    case.take(*series)
    case.segment()
    case.take(*series)
    assert case.settle() == []
    assert names_in(case.folders.done) == [study]
    assert names_in(case.folders.receiving) == []


def test_late_instances_make_the_study_wait_again_as_a_whole(case: Case) -> None:
    series = make_series()
    case.take(*series[:6])
    (study,) = case.settle()
    case.segment()
    case.take(*series[6:], series[0])
    assert case.settle() == [study]
    assert instances_in(case.folders.waiting / study) == uids(series)
    assert names_in(case.folders.done) == []


def test_what_comes_while_a_study_waits_follows_it(case: Case) -> None:
    series = make_series()
    case.take(*series[:6])
    (study,) = case.settle()
    case.take(*series[6:])
    assert case.settle() == []
    case.segment()
    assert case.settle(0) == [study]
    assert instances_in(case.folders.waiting / study) == uids(series)


def test_a_changed_instance_replaces_the_former(case: Case) -> None:
    series = make_series()
    case.take(*series)
    (study,) = case.settle()
    case.segment()
    set_pixels(series[3], np.full((16, 16), 77, np.uint16))
    case.take(series[3])
    case.settle()
    home = case.folders.waiting / study / INSTANCES
    assert len(names_in(home)) == len(series)
    assert (home / f"{series[3].SOPInstanceUID}.dcm").read_bytes() == arrival(series[3]).content


def test_a_study_that_was_set_aside_is_tried_again_when_it_is_sent_again(case: Case) -> None:
    series = make_series()
    case.take(*series)
    (study,) = case.settle()
    (case.folders.waiting / study).rename(case.folders.set_aside / study)
    case.take(series[0])
    assert case.settle() == [study]
    assert instances_in(case.folders.waiting / study) == uids(series)
    assert names_in(case.folders.set_aside) == []


def test_other_objects_than_images_are_refused(case: Case) -> None:
    (one,) = make_series()[:1]
    one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    with pytest.raises(NotStoredError) as refused:
        case.take(one)
    assert refused.value.status == OTHER_KIND
    assert names_in(case.folders.receiving) == names_in(case.folders.incoming) == []


def test_a_full_queue_refuses_new_studies_only(tmp_path: Path) -> None:
    case = Case(tmp_path, most_waiting=2)
    first, second, third = make_series(), make_series(), make_series()
    case.take(first[0])
    case.settle()
    case.take(second[0])
    with pytest.raises(NotStoredError) as refused:
        case.take(third[0])
    assert refused.value.status == OUT_OF_RESOURCES
    case.take(second[1])
    assert names_in(case.folders.receiving) == []


def test_a_full_disk_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    case = Case(tmp_path, keep_free=2**60)
    with pytest.raises(NotStoredError) as refused:
        case.take(make_series()[0])
    assert refused.value.status == OUT_OF_RESOURCES
    assert names_in(case.folders.receiving) == names_in(case.folders.incoming) == []


def test_a_restart_goes_on_with_what_came_before(case: Case, tmp_path: Path) -> None:
    series = make_series()
    case.take(*series)
    (case.folders.receiving / "half.part").write_text("half")
    again = Case(case.folders.root)
    assert names_in(again.folders.receiving) == []
    assert again.settle(0) == []
    (study,) = again.settle()
    assert instances_in(again.folders.waiting / study) == uids(series)


def test_nothing_is_lost_by_a_kill_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that was done, a late instance, and a kill: whatever was kept is in the next version."""
    series = make_series()[:3]
    for step in range(100):
        case = Case(tmp_path / str(step))
        case.take(*series[:2])
        (study,) = case.settle()
        case.segment()
        kept = set(uids(series[:2]))
        with killed_at(step, monkeypatch) as steps:
            try:
                case.take(series[2])
                kept.add(series[2].SOPInstanceUID)
                case.settle()
            except Killed:
                pass
            done = steps()
        again = Case(case.folders.root)
        again.settle(0)
        again.settle()
        places = [home / study for home in (again.folders.waiting, again.folders.done) if (home / study).exists()]
        assert len(places) == 1
        assert kept <= instances_in(places[0])
        if done < step:
            assert len(kept) == 3 and step > 5
            return
    pytest.fail("it never came to its end")


def test_a_study_does_not_settle_while_its_sender_is_in_the_middle_of_an_instance(case: Case) -> None:
    series = make_series()
    line = Line(heard=case.clock.now)
    case.incoming.keep(replace(arrival(series[0]), line=line))
    case.clock.now += SETTLE
    line.heard = case.clock.now  # a part of the next instance
    assert case.settle(SETTLE - 1) == []
    assert case.settle(1) == [series[0].StudyInstanceUID]


def test_a_sender_that_has_gone_on_to_another_study_holds_up_none(case: Case) -> None:
    first, second = make_series(), make_series()
    line = Line(heard=case.clock.now)
    for one in (first[0], second[0]):
        case.incoming.keep(replace(arrival(one), line=line))
    case.clock.now += SETTLE
    line.heard = case.clock.now
    assert case.settle(0) == [first[0].StudyInstanceUID]


@pytest.mark.parametrize("home", ["incoming", "waiting", "done", "set_aside"])
def test_two_series_of_a_study_cannot_share_an_instance_uid(case: Case, home: str) -> None:
    series = make_series()
    case.take(*series)
    study = series[0].StudyInstanceUID
    if home != "incoming":
        case.settle()
        (case.folders.waiting / study).rename(getattr(case.folders, home) / study)
    other = make_series()[0]
    other.StudyInstanceUID, other.SOPInstanceUID = study, series[0].SOPInstanceUID
    with pytest.raises(NotStoredError, match="another series") as refused:
        case.take(other)
    assert refused.value.status == NOT_UNDERSTOOD
    assert instances_in(getattr(case.folders, home) / study) == uids(series)


def test_what_cannot_be_moved_on_is_said_once_and_tried_again(
    case: Case, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    series = make_series()
    case.take(*series)
    waiting, away = case.folders.waiting, tmp_path / "away"
    waiting.rename(away)
    assert [case.settle() for _ in range(5)] == [[]] * 5
    assert caplog.text.count("cannot be moved on yet") == 1
    away.rename(waiting)
    assert case.settle() == [series[0].StudyInstanceUID]


def test_what_is_no_study_is_left_alone(case: Case) -> None:
    (case.folders.incoming / "README").write_text("notes")
    (case.folders.incoming / "1.2.3").write_text("a file")
    (case.folders.incoming / "notes").mkdir()
    assert case.settle(0) == [] and case.settle() == []
    assert names_in(case.folders.incoming) == ["1.2.3", "README", "notes"]
