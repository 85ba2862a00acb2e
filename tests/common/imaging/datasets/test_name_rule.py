"""A rule that finds the patient in a case's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import DataError
from common.imaging.datasets.case import Reading
from common.imaging.datasets.dataset import find_dataset
from common.imaging.datasets.name_rule import compile_rule, patients_by_name

RULE = "sub-(?P<patient>[A-Za-z0-9]+)(?:_.*)?"


def test_a_rule_finds_patients_in_names_as_bids_has_them() -> None:
    found = patients_by_name(["sub-01", "sub-01_ses-2_T1w", "sub-A7_T1w"], compile_rule(RULE), Path("d"))
    assert found == {"sub-01": "01", "sub-01_ses-2_T1w": "01", "sub-A7_T1w": "A7"}


@pytest.mark.parametrize("name", ["knee_01", "sub-", "x_sub-01", "sub-01-x"])
def test_a_name_without_a_patient_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=name):
        patients_by_name(["sub-01", name], compile_rule(RULE), Path("d"))


def test_an_empty_patient_is_refused() -> None:
    with pytest.raises(DataError, match="finds none in the name 'case_'"):
        patients_by_name(["case_"], compile_rule("case_(?P<patient>.*)"), Path("d"))


@pytest.mark.parametrize("text", ["sub-(.*)", "(?P<patient>", "(?P<person>.*)", "(?P<patient>.)(.)", "sub"])
def test_a_rule_has_one_group(text: str) -> None:
    with pytest.raises(ValueError, match=r"group|regular expression"):
        compile_rule(text)


def test_the_table_of_patients_goes_before_the_rule(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for name in ("sub-1_a", "sub-1_b"):
            (tmp_path / kind / f"{name}.nii.gz").touch()
    rule = compile_rule(RULE)
    assert [case.owner for case in find_dataset(tmp_path).read_as(Reading(patient_rule=rule)).cases] == ["1", "1"]
    assert [case.patient for case in find_dataset(tmp_path).cases] == [None, None]
    with pytest.raises(DataError, match="sub-1_a"):
        find_dataset(tmp_path).read_as(Reading(patient_rule=compile_rule("(?P<patient>[0-9]+)")))
    (tmp_path / "patients.csv").write_text("case,patient\nsub-1_a,X\nsub-1_b,Y\n")
    assert [case.owner for case in find_dataset(tmp_path).read_as(Reading(patient_rule=rule)).cases] == ["X", "Y"]
