"""Labels belong to the series whose instances they refer to, and to no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from common.imaging.io.dicom.find import find_series
from common.imaging.io.dicom.labels.matching import Match, match_labels
from common.imaging.io.dicom.rules import USUAL_RULES
from tests.dicom_labels import segmentation, write
from tests.dicom_series import make_series, save


def match(folder: Path) -> Match:
    found = find_series(folder, USUAL_RULES)
    (one,) = match_labels(found.labels, found.series)
    return one


def label(slices: list[Dataset]) -> Dataset:
    mask = np.zeros((len(slices), 16, 16), dtype=bool)
    mask[2:5, 3:7, 4:9] = True
    return segmentation(slices, {"one": mask})


def test_names_and_folders_do_not_matter(tmp_path: Path) -> None:
    mine, other = make_series(), make_series()
    save(tmp_path / "a" / "b", mine)
    save(tmp_path / "seg", other)
    write(tmp_path / "seg" / "z", label(mine))
    found = match(tmp_path)
    assert found.series is not None and found.series.folder == tmp_path / "a" / "b"


def test_another_study(tmp_path: Path) -> None:
    save(tmp_path / "a", make_series())
    write(tmp_path / "seg", label(make_series()))
    assert match(tmp_path).refusal == "belongs to a study of which no series is here"


def test_another_study_than_the_instances_that_it_refers_to(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    one = label(slices)
    one.StudyInstanceUID = generate_uid()
    write(tmp_path / "seg", one)
    assert match(tmp_path).refusal.startswith("belongs to another study than the series that it refers to (series 7")


def test_a_series_that_is_not_here(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", make_series(StudyInstanceUID=slices[0].StudyInstanceUID))
    write(tmp_path / "seg", label(slices))
    assert match(tmp_path).refusal == "refers to 8 instances, none of which is here"


def test_instances_that_are_not_there(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", slices[:-2])
    write(tmp_path / "seg", label(slices))
    assert match(tmp_path).refusal.startswith("refers to 8 instances, of which 2 are not there (series 7")


def test_several_series(tmp_path: Path) -> None:
    one, two = make_series(), make_series()
    for slice_ in two:
        slice_.StudyInstanceUID, slice_.SeriesNumber = one[0].StudyInstanceUID, 8
    save(tmp_path / "a", one)
    save(tmp_path / "b", two)
    found = label(one)
    more = label(two).ReferencedSeriesSequence[0]
    found.ReferencedSeriesSequence.append(more)
    write(tmp_path / "seg", found)
    assert match(tmp_path).refusal.startswith("refers to several series: series 7 'made up', 8 instances, series 8")


def test_several_volumes_of_one_series(tmp_path: Path) -> None:
    slices = make_series(np.arange(16 * 256, dtype=np.uint16).reshape(16, 16, 16), EchoTime=5)
    for first, second in zip(slices[:8], slices[8:], strict=True):
        second.ImagePositionPatient, second.EchoTime = first.ImagePositionPatient, 50
    save(tmp_path / "a", slices)
    one = label(slices[:8])
    write(tmp_path / "seg", one)
    found = match(tmp_path).series
    assert found is not None and found.part == "echo time 5"
    one.ReferencedSeriesSequence[0].ReferencedInstanceSequence.append(
        label(slices[8:]).ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    )
    write(tmp_path / "seg", one)
    assert match(tmp_path).refusal.startswith("refers to several volumes of one series")


def test_another_frame_of_reference(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    one = label(slices)
    one.FrameOfReferenceUID = generate_uid()
    write(tmp_path / "seg", one)
    assert match(tmp_path).refusal.startswith("has another frame of reference than the series")


def test_a_series_without_a_frame_of_reference_is_told_by_its_instances(tmp_path: Path) -> None:
    slices = make_series()
    one = label(slices)
    for slice_ in slices:
        del slice_.FrameOfReferenceUID
    save(tmp_path / "a", slices)
    write(tmp_path / "seg", one)
    found = match(tmp_path)
    assert found.series is not None and not found.refusal


def test_another_series_than_that_of_the_instances(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    one = label(slices)
    one.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    write(tmp_path / "seg", one)
    assert match(tmp_path).refusal.startswith("states another series for the instances that it refers to (series 7")


@pytest.mark.parametrize(("patient", "refused"), [("P2", True), ("P1 ", False), ("", False)])
def test_another_patient_is_refused_and_not_named(tmp_path: Path, patient: str, refused: bool) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    one = label(slices)
    one.PatientID, one.PatientName = patient, "Somebody^Else"
    write(tmp_path / "seg", one)
    found = match(tmp_path)
    expected = "has another PatientID than the series that it refers to (series 7 'made up', 8 instances)"
    assert found.refusal == (expected if refused else "")
    assert "P2" not in repr(found)


def test_a_series_that_is_refused(tmp_path: Path) -> None:
    slices = make_series()
    one = label(slices)
    slices[3].ImagePositionPatient = slices[4].ImagePositionPatient
    save(tmp_path / "a", slices)
    write(tmp_path / "seg", one)
    assert match(tmp_path).refusal.startswith("refers to a series that is not read: series 7 'made up', 8 instances:")


@pytest.mark.parametrize("frames_too", [False, True])
def test_references_of_frames_alone_will_do_and_none_will_not(tmp_path: Path, frames_too: bool) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    one = label(slices)
    del one.ReferencedSeriesSequence
    if frames_too:
        for group in one.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
    write(tmp_path / "seg", one)
    found = match(tmp_path)
    assert (found.series is None) is frames_too
    assert found.refusal.startswith("refers to no images" if frames_too else "")


def test_what_a_file_says_is_shown_cut_and_without_control_characters(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    one = label(slices)
    one.SegmentationType = "X\x1b[2J" * 3
    write(tmp_path / "seg", one)
    assert "\x1b" not in match(tmp_path).refusal and r"\x1b[2J" in match(tmp_path).refusal
