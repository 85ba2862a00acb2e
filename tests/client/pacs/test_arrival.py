"""From files of a study to a folder of the dataset."""

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from client.deidentify.choices import Choices
from client.deidentify.identities import Identities
from client.pacs.arrival import Arrivals, StudyRefusedError
from tests.client.pacs.studies import study
from tests.dicom_series import save


def take(folder: Path, choices: Choices | None, *series: list[Dataset]) -> tuple[list[str], list[Dataset]]:
    files = {str(one): sorted(save(folder / f"in{one}", slices).iterdir()) for one, slices in enumerate(series)}
    (folder / "out").mkdir()
    left_out = Arrivals(Identities(folder / "identities"), choices).take(files, folder / "out")
    return left_out, [dcmread(path) for path in sorted((folder / "out").iterdir())]


@pytest.mark.parametrize("choices", [Choices(), None])
@pytest.mark.parametrize("other", ["P9", ""])
def test_a_study_of_two_patients_is_refused(tmp_path: Path, choices: Choices | None, other: str) -> None:
    slices = study("A1", 1)
    slices[3].PatientID = other
    with pytest.raises(StudyRefusedError, match="of 2 patients: correct PatientID in the archive") as caught:
        take(tmp_path, choices, slices)
    assert "P1" not in caught.value.reason and "P9" not in caught.value.reason


@pytest.mark.parametrize("choices", [Choices(), None])
def test_series_of_two_patients_are_refused_and_those_of_one_are_taken(tmp_path: Path, choices: Choices | None) -> None:
    first, second = study("A1", 1), study("A1", 2, StudyInstanceUID="1.2.3")
    with pytest.raises(StudyRefusedError, match="of 2 patients"):
        take(tmp_path / "two", choices, first, second)
    left_out, taken = take(tmp_path / "one", choices, first, study("A1", 2, PatientID="P1 "))
    assert left_out == [] and len(taken) == 12
    assert len({one.PatientID for one in taken}) == 1


def test_a_series_that_is_left_out_does_not_count(tmp_path: Path) -> None:
    other = study("A1", 2, BurnedInAnnotation="YES")
    left_out, taken = take(tmp_path, Choices(), study("A1", 1), other)
    assert len(left_out) == 1 and len(taken) == 6


def test_a_file_without_a_readable_header_is_refused_where_files_stay_as_they_are(tmp_path: Path) -> None:
    path = save(tmp_path / "in", study("A1", 1)[:1]) / "000.dcm"
    content, item = path.read_bytes(), b"\x08\0\x18\x22SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    at = content.index(b"\x10\0\x10\0")
    path.write_bytes(content[:at] + item * 5000 + content[at:])
    (tmp_path / "out").mkdir()
    with pytest.raises(StudyRefusedError, match="an instance is damaged"):
        Arrivals(Identities(tmp_path / "identities"), None).take({"1": [path]}, tmp_path / "out")
