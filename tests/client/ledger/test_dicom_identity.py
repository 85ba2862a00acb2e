"""Patients known by their DICOM series: as one scan, whatever the number of its files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from client.ledger.patient_identity import MARK, PatientIndex, PatientsError, is_scan
from common.imaging.datasets.dataset import find_dataset
from tests.common.imaging.datasets.test_dicom_cases import write_pair


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b", "c")):
        write_pair(tmp_path, name, seed)
    return tmp_path / "dicom"


def test_a_patient_stays_the_same_if_folders_and_files_are_renamed(dicom: Path) -> None:
    patients = PatientIndex(None).identify(find_dataset(dicom).cases)
    assert len(set(patients.values())) == 3
    assert all(sum(map(is_scan, marks)) == 1 for marks in patients.values())
    (dicom / "images" / "a").rename(dicom / "images" / "d")
    (dicom / "labels" / "a.nii.gz").rename(dicom / "labels" / "d.nii.gz")
    for path in list((dicom / "images" / "d").iterdir()):
        path.rename(path.with_name(f"IM{9 - int(path.stem)}"))
    again = PatientIndex(None).identify(find_dataset(dicom).cases)
    assert again["d"] == patients["a"]


def test_marks_are_such_as_the_ledger_takes(dicom: Path) -> None:
    for marks in PatientIndex(None).identify(find_dataset(dicom).cases).values():
        assert all(re.fullmatch(MARK, mark) for mark in marks)


def test_a_series_of_another_uid_is_known_by_its_voxels(dicom: Path) -> None:
    (dicom / "images" / "z").mkdir()
    for path in (dicom / "images" / "a").iterdir():
        (dicom / "images" / "z" / path.name).write_bytes(with_other_series(path.read_bytes()))
    (dicom / "labels" / "z.nii.gz").write_bytes((dicom / "labels" / "a.nii.gz").read_bytes())
    patients = PatientIndex(None).identify(find_dataset(dicom).cases)
    shared = set(patients["a"]) & set(patients["z"])
    assert shared and not any(map(is_scan, shared))


def with_other_series(content: bytes) -> bytes:
    """A file whose series has another UID of the same length."""
    at = content.index(b"\x20\x00\x0e\x00UI") + 8
    last = at + int.from_bytes(content[at - 2 : at], "little") - 3
    return content[:last] + (b"1" if content[last : last + 1] != b"1" else b"2") + content[last + 1 :]


def test_one_series_as_two_patients_is_refused(dicom: Path) -> None:
    case = find_dataset(dicom).cases[0]
    with pytest.raises(PatientsError, match="holds the same image as a"):
        PatientIndex(None).identify([case, replace(case, name="other")])
