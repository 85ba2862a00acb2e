"""Patients known by their DICOM series: as one scan, whatever the number of its files."""

from __future__ import annotations

import re
import stat
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from client.ledger.identifiers import Identifiers
from client.ledger.ledger import Ledger
from client.ledger.patient_identity import MARK, Patient, PatientIndex, PatientsError, identifier_of, is_scan
from common.imaging.datasets.case import Reading
from common.imaging.datasets.comparison import Wanted, compare
from common.imaging.datasets.dataset import Dataset, find_dataset
from common.imaging.datasets.patients_csv import with_patients as name_patients
from tests.common.imaging.datasets.test_dicom_cases import write_pair
from tests.dicom_series import make_series, only_series_in, save

FORMS = {"a": "NFC", "b": "NFD"}
"""Names of cases and forms of Unicode."""


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
    names = {name: name for name in "abcz"}
    patients = PatientIndex(None).identify(with_table(find_dataset(dicom), names).cases)
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
        PatientIndex(None).identify([case, replace(case, name="other", patient="other", patient_id=None)])


def with_patients(root: Path, **patients: str) -> None:
    """Series, some of one patient in several studies."""
    for seed, (name, patient) in enumerate(patients.items()):
        voxels = np.random.default_rng(seed).integers(0, 900, (8, 16, 16), dtype=np.uint16)
        save(root / name, make_series(voxels, PatientID=patient))


def identify(root: Path, ledger: Path, dataset: Dataset | None = None) -> dict[str, Patient]:
    mark = Identifiers(Ledger(ledger), may_make=True).mark
    return PatientIndex(None, mark).identify((dataset or find_dataset(root)).cases)


def test_series_of_one_patient_id_are_one_patient(tmp_path: Path) -> None:
    with_patients(tmp_path / "data", a="MRN 007 ", b="MRN 008", c="MRN 007")
    patients = identify(tmp_path / "data", tmp_path / "ledger.jsonl")
    assert patients["a"] == patients["c"] != patients["b"]
    assert [case.owner for case in find_dataset(tmp_path / "data").cases] == ["a", "b", "a"]


def test_a_new_scan_of_a_patient_goes_on_with_their_budget_and_the_same_number_in_a_table_too(tmp_path: Path) -> None:
    for seed, folder in enumerate(("then", "now")):
        voxels = np.random.default_rng(seed).integers(0, 900, (8, 16, 16), dtype=np.uint16)
        save(tmp_path / folder / "x", make_series(voxels, PatientID="MRN 007"))
    ledger = tmp_path / "ledger.jsonl"
    then, now = (identify(tmp_path / folder, ledger)["x"] for folder in ("then", "now"))
    assert set(then) & set(now) == {identifier_of(then)}
    table = with_table(find_dataset(tmp_path / "now"), {"x": "MRN 007"})
    assert identify(tmp_path, ledger, table)["x"] == now


def with_table(dataset: Dataset, patients: dict[str, str]) -> Dataset:
    return replace(dataset, cases=tuple(name_patients(dataset.cases, patients)))


def test_a_table_or_a_rule_comes_before_patient_ids(tmp_path: Path) -> None:
    with_patients(tmp_path, p1_a="MRN 007", p1_b="MRN 008", p2_a="MRN 007")
    dataset = find_dataset(tmp_path)
    rule = Reading(patient_rule=re.compile("(?P<patient>p[0-9])_."))
    by_rule = dataset.read_as(rule)
    assert [case.owner for case in by_rule.cases] == ["p1", "p1", "p2"]
    assert not any(case.patient_id for case in by_rule.cases)
    by_table = with_table(dataset, {"p1_a": "x", "p1_b": "y", "p2_a": "z"})
    assert [case.owner for case in by_table.read_as(rule).cases] == ["x", "y", "z"]


def test_a_series_without_a_patient_id_is_refused_under_privacy_with_what_to_do(tmp_path: Path) -> None:
    with_patients(tmp_path / "data", a="MRN 007", b="", c="  ")
    cases = find_dataset(tmp_path / "data").cases
    assert [case.owner for case in cases] == ["a", "b", "c"]
    with pytest.raises(PatientsError, match=r"b \(and 1 more\) has no PatientID.*patients\.csv.*patient_from_name"):
        identify(tmp_path / "data", tmp_path / "ledger.jsonl")


def test_a_patient_id_is_in_nothing_that_is_kept_or_shown(tmp_path: Path) -> None:
    with_patients(tmp_path / "data", a="MRN007X", b="MRN007X")
    found = find_dataset(tmp_path / "data")
    patients = identify(tmp_path / "data", tmp_path / "ledger.jsonl")
    secret = tmp_path / "ledger.jsonl.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert "MRN007X" not in repr(found) + repr(patients) + secret.read_text()


def test_a_series_of_two_patients_is_refused(tmp_path: Path) -> None:
    slices = make_series(PatientID="MRN 007")
    slices[3].PatientID = "MRN 008"
    refusal = only_series_in(save(tmp_path, slices)).refusal
    assert refusal == "has instances of 2 patients (PatientID)"


def test_one_identifier_of_two_patients_is_refused(tmp_path: Path) -> None:
    """A table may write a letter composed in one line, and decomposed in another."""
    with_patients(tmp_path / "data", a="MRN 007", b="MRN 008")
    table = with_table(
        find_dataset(tmp_path / "data"), {name: unicodedata.normalize(form, "Müller") for name, form in FORMS.items()}
    )
    with pytest.raises(PatientsError, match="have the same identifier, and count as two patients"):
        identify(tmp_path / "data", tmp_path / "ledger.jsonl", table)


def test_a_patient_id_is_one_whatever_its_form_of_unicode(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        patient = unicodedata.normalize(form, "Müller")
        save(tmp_path / name, make_series(PatientID=patient, SpecificCharacterSet="ISO_IR 192"))
    assert [case.owner for case in find_dataset(tmp_path).cases] == ["a", "a"]


def doubts(root: Path) -> list[tuple[str, str]]:
    return [(problem.severity, problem.text) for problem in compare(find_dataset(root), Wanted())[1]]


@pytest.mark.parametrize("pair", [("abc1", "ABC1"), ("00123", "123"), ("A 1", "A  1"), ("P-01", "P1"), ("x.1", "x_1")])
def test_patient_ids_that_differ_only_in_spelling_are_told_without_their_text(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    with_patients(tmp_path, a=pair[0], b=pair[1], c="Q 7", d="Q 71", e=pair[0])
    ((severity, text),) = doubts(tmp_path)
    assert severity == "warning" and text.startswith("1 PatientID is spelt in several ways")
    assert "several patients: a and b (" in text and not any(one in text for one in pair)


def test_one_patient_id_of_two_issuers_is_told_and_stays_one_patient(tmp_path: Path) -> None:
    for name, issuer in {"a": "north", "b": "south", "c": ""}.items():
        save(tmp_path / name, make_series(PatientID="MRN7", IssuerOfPatientID=issuer))
    ((severity, text),) = doubts(tmp_path)
    assert severity == "warning" and text.startswith("1 PatientID has several issuers, and each counts as one patient")
    assert ": a and b; " in text and "MRN7" not in text and "north" not in text
    assert {case.owner for case in find_dataset(tmp_path).cases} == {"a"}


def test_a_study_of_two_patient_ids_is_refused_until_a_table_names_patients(tmp_path: Path) -> None:
    study = generate_uid()
    for name in "ab":
        save(tmp_path / name, make_series(PatientID=f"MRN{name}", StudyInstanceUID=study))
    assert doubts(tmp_path) == [
        (
            "error",
            "has 1 study of several PatientIDs: a and b; name the patients of all cases in patients.csv",
        )
    ]
    table = with_table(find_dataset(tmp_path), {"a": "x", "b": "x"})
    assert not compare(table, Wanted())[1]
