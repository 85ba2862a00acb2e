"""Whether PatientIDs of DICOM tell patients apart; no message holds one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common.formatting import counted
from common.imaging.datasets.case import Case, Problem
from common.imaging.datasets.patients_csv import PATIENTS_FILE

_MOST_NAMED = 3
_ADVICE = f"name the patients of all cases in {PATIENTS_FILE}"


def patient_problems(cases: Sequence[Case], place: Path) -> list[Problem]:
    """Return what is doubtful about the cases whose patients are named by PatientID.

    Parameters
    ----------
    cases
        Cases of one dataset; those with other names of patients do not matter.
    place
        The dataset's folder, for messages.
    """
    known = [case for case in cases if case.patient_id]
    problems = []
    if found := _differing(known, lambda case: case.series.study if case.series else "", _patient):
        text = f"has {counted(len(found), 'study', 'studies')} of several PatientIDs: {_named(found)}; {_ADVICE}"
        problems.append(Problem(None, place, text))
    if found := _differing(known, _bare, _patient):
        text = (
            f"{counted(len(found), 'PatientID is', 'PatientIDs are')} spelt in several ways, which count as several "
            f"patients: {_named(found)} (capitals, leading zeros, blanks, punctuation); if they are one, {_ADVICE}"
        )
        problems.append(Problem(None, place, text, "warning"))
    if found := _differing(known, _patient, lambda case: case.series.issuer if case.series else ""):
        text = (
            f"{counted(len(found), 'PatientID has', 'PatientIDs have')} several issuers, and each counts as one "
            f"patient: {_named(found)}; if they are several, {_ADVICE}"
        )
        problems.append(Problem(None, place, text, "warning"))
    return problems


def _differing(
    cases: Iterable[Case], same: Callable[[Case], str], different: Callable[[Case], str]
) -> list[dict[str, Case]]:
    """Group cases by one value, and return the groups with several of another: the first case of each."""
    groups: dict[str, dict[str, Case]] = {}
    for case in cases:
        if same(case) and different(case):
            groups.setdefault(same(case), {}).setdefault(different(case), case)
    return [group for group in groups.values() if len(group) > 1]


def _named(groups: Sequence[dict[str, Case]]) -> str:
    texts = [" and ".join([case.name for case in group.values()][:_MOST_NAMED]) for group in groups[:_MOST_NAMED]]
    return "; ".join(texts) + (", ..." if len(groups) > _MOST_NAMED else "")


def _patient(case: Case) -> str:
    return case.patient_id or ""


def _bare(case: Case) -> str:
    """Return a PatientID without what people write in several ways."""
    letters = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", _patient(case)).casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", letters)
