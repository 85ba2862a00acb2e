"""Which cases are scans of one patient, and tables that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.data.dataset_check import check_dataset
from common.errors import DataError
from common.imaging.datasets.dataset import find_dataset, scan_dataset
from common.imaging.datasets.patients_csv import PATIENTS_FILE, read_patients
from common.imaging.phantoms.dataset import write_phantom_dataset

CASES = ["a", "b", "c"]


def table(folder: Path, text: str) -> Path:
    (folder / PATIENTS_FILE).write_text(text, encoding="utf-8")
    return folder / PATIENTS_FILE


def test_every_case_has_its_patient(tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffpatient,case,note\np,a,\nq, b ,x\np,c,\n")
    assert read_patients(path, CASES) == {"a": "p", "b": "q", "c": "p"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("case,patient\na,p\nb,p\nc,q\nd,q\n", "line 5: there is no case 'd'"),
        ("case,patient\na,p\nb,p\n", "has no row for case c; add a row for every case"),
        ("case,patient\na,p\n", r"has no row for case b \(and 1 more\)"),
        ("case,patient\na,p\nb,\nc,q\n", "line 3: column patient has no patient for case b"),
        ("case,patient\na,p\nb,p\na,q\nc,q\n", "line 4: duplicate case a"),
        ("case,patient\na,p\nb\nc,q\n", "line 3: column patient has no patient for case b"),
        ("case,person\na,p\n", "has no column patient; its columns are case, person"),
        ("", "has no column case; its columns are none"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(DataError, match=complaint) as caught:
        read_patients(path, CASES)
    assert str(path) in str(caught.value)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / PATIENTS_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_patients(tmp_path / PATIENTS_FILE, CASES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_phantom_dataset(tmp_path / "phantoms", [3], seed=0, shape=(32, 32, 32))


def test_the_table_of_a_dataset_folder_counts(data: Path) -> None:
    names = [case.name for case in find_dataset(data).cases]
    assert {case.owner for case in find_dataset(data).cases} == set(names)
    table(data, "case,patient\n" + "".join(f"{name},p{index // 2}\n" for index, name in enumerate(names)))
    assert [case.owner for case in find_dataset(data).cases] == ["p0", "p0", "p1"]
    report = check_dataset(data)
    assert report.usable and report.patients == 2
    assert "2, by patients.csv" in report.to_text()


def test_a_table_that_does_not_fit_makes_the_dataset_unusable(data: Path) -> None:
    path = table(data, "case,patient\nnobody,p\n")
    with pytest.raises(DataError, match="no case 'nobody'"):
        find_dataset(data)
    report = check_dataset(data)
    assert not report.usable and str(path) in report.to_text()
    [problem] = scan_dataset(data)[1]
    assert problem.path == path and problem.case is None
    assert len(report.cases) == 3, "the rest is looked through all the same"


def test_a_case_that_is_incomplete_may_be_in_the_table(data: Path) -> None:
    """It has its own problem: one line for one mistake."""
    names = [case.name for case in find_dataset(data).cases]
    table(data, "case,patient\n" + "".join(f"{name},p\n" for name in names))
    (data / "labelsTr" / f"{names[0]}.nii.gz").unlink()
    assert [problem.case for problem in scan_dataset(data)[1]] == [names[0]]
