"""Which studies are wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.pacs.archives.archive import Series, Study
from client.pacs.cohort import Cohort, load_cohort, read_accessions, why_not_askable
from common.errors import ConfigError


def cohort_of(folder: Path, text: str) -> Cohort:
    path = folder / "cohort.yaml"
    path.write_text(text, encoding="utf-8")
    return load_cohort(path)


def test_keys_become_questions_and_are_applied_to_the_answers(tmp_path: Path) -> None:
    dates = "first_date: 2024-01-31\nlast_date: 2024-02-29\n"
    cohort = cohort_of(tmp_path, dates + 'study_description: "*kn[e]e?"\nmodality: [MR, CT]\nbody_part: knee\n')
    assert cohort.questions() == [
        {"StudyDate": "20240131-20240229", "StudyDescription": "*kn[e]e?", "ModalitiesInStudy": modality}
        for modality in ("MR", "CT")
    ]
    assert cohort.wants_study(Study("1", "", "20240229", "left KN[E]Es"))
    assert not cohort.wants_study(Study("1", "", "20240229", "left KNEEs"))
    assert not cohort.wants_study(Study("1", "", "20240301", "left KN[E]Es"))
    assert not cohort.wants_study(Study("1", "", "", "left KN[E]Es"))
    assert cohort.wants_series(Series("1", "CT", "anything", "KNEE"))
    assert not cohort.wants_series(Series("1", "PT", "anything", "KNEE"))
    assert not cohort.wants_series(Series("1", "CT", "anything", ""))


def test_an_open_range_of_dates_is_asked_for_as_such(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, "first_date: 2024-01-31\n")
    assert cohort.questions() == [{"StudyDate": "20240131-"}]
    assert cohort.wants_study(Study("1", "", "20991231", ""))
    assert not cohort.wants_study(Study("1", "", "20240130", ""))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "would ask for the whole archive"),
        ("body_part: KNEE\n", "would ask for the whole archive"),
        ("first_date: 2024-02-30\n", "first_date"),
        ("first_date: 2024-02-01\nlast_date: 2024-01-01\n", "first_date is after last_date"),
        ("modality: 'M*'\n", "modality"),
        ('study_description: "a\\\\b"\n', "study_description"),
        ("accession: a.csv\n", "accession"),
        ("- a\n", "must be a mapping"),
    ],
)
def test_a_cohort_that_says_nothing_or_too_much_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        cohort_of(tmp_path, text)
    with pytest.raises(ConfigError, match="there is no such file"):
        load_cohort(tmp_path / "none.yaml")


@pytest.mark.parametrize("separator", [",", ";"])
def test_accession_numbers_are_read_once_each_and_in_order(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "cohort.csv"
    lines = ["\ufeffname" + separator + "accession", *(f"x{separator}{one}" for one in ("B 2", " A1", "", "A1 "))]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    assert read_accessions(path, "accession") == ("B 2", "A1")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name\nA\n", "has no column accession; its columns are name"),
        (b"", "has no column accession; its columns are none"),
        (b"accession\n\n \n", "column accession is empty"),
        (b"accession\n\xff\n", "cannot be read as CSV"),
        (b"accession\n" + b"1" * 200_000 + b"\n", "cannot be read as CSV"),
    ],
)
def test_a_file_without_accession_numbers_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "cohort.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        read_accessions(path, "accession")


@pytest.mark.parametrize("accession", ["A*", "A?1", "A\\B", "A\tB", "A\nB", "Ä", "A\x00", "1" * 17])
def test_what_an_archive_would_understand_otherwise_is_not_asked_for(accession: str) -> None:
    assert why_not_askable(accession)


@pytest.mark.parametrize("accession", ["A1", "2024-01/7", "A 1", "[x]", "1" * 16, '"', "%27"])
def test_other_signs_are_asked_for(accession: str) -> None:
    assert not why_not_askable(accession)
