"""``patients.csv`` in a dataset folder: the patient of every case.

It has the columns ``case`` and ``patient`` and a row for every case. Differential privacy then protects patients, and
the split into training and validation keeps all scans of a patient together. Without the file, every case counts as one
patient.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import DataError
from common.imaging.datasets.case import Case, Problem

PATIENTS_FILE = "patients.csv"


def read_column(path: Path, key: str, column: str, delimiter: str = ",") -> dict[str, tuple[str, int]]:
    """Read two columns of a CSV file with a header.

    Parameters
    ----------
    path
        The file, UTF-8.
    key
        Name of the column with unique values.
    column
        Name of the other column.
    delimiter
        Between columns.

    Returns
    -------
    dict[str, tuple[str, int]]
        For each value of ``key``, the value of ``column`` and its line number, from 1.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, or contains a value of ``key`` twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter)
            names = reader.fieldnames or []
            for name in (key, column):
                if name not in names:
                    raise DataError(path, f"has no column {name}; its columns are {', '.join(names) or 'none'}")
            values: dict[str, tuple[str, int]] = {}
            for row in reader:
                found = (row[key] or "").strip()
                if found in values:
                    raise DataError(path, f"line {reader.line_num}: duplicate {key} {found}; keep one row per {key}")
                values[found] = ((row[column] or "").strip(), reader.line_num)
            return values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"cannot be read as CSV: {error}") from None


def read_patients(
    path: Path, cases: Collection[str], others: Collection[str] = (), column: str = "patient", case_column: str = "case"
) -> dict[str, str]:
    """Read the patient of every case: case name -> patient.

    Parameters
    ----------
    path
        The CSV file.
    cases
        Names of all cases, each of which must be in the file.
    others
        Further names that the file may contain.
    column, case_column
        Names of the columns with patients and cases.

    Raises
    ------
    DataError
        If the file names an unknown case, omits a case, or has no patient for one.
    """
    table = read_column(path, case_column, column)
    for case, (patient, line) in table.items():
        if case not in cases and case not in others:
            raise DataError(path, f"line {line}: there is no case {case!r} in this folder; correct or remove the line")
        if not patient:
            raise DataError(path, f"line {line}: column {column} has no patient for case {case}; fill it in")
    missing = sorted(set(cases) - set(table))
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(path, f"has no row for case {missing[0]}{more}; add a row for every case")
    return {case: table[case][0] for case in cases}


def with_patients(cases: Sequence[Case], patients: Mapping[str, str]) -> list[Case]:
    """Return the cases with their patients filled in.

    Parameters
    ----------
    cases
        Cases of one dataset.
    patients
        Case name -> patient, for every case.
    """
    return [replace(case, patient=patients[case.name], patient_id=None) for case in cases]


def with_table(root: Path, cases: list[Case], problems: list[Problem], others: Collection[str]) -> list[Case]:
    """Return the cases with their patients in ``patients.csv``, if a folder has one.

    Parameters
    ----------
    root
        The folder.
    cases
        Its cases.
    problems
        Problems found so far, to which those of the table are added; it may name the cases that these are about.
    others
        Further names that the table may contain.
    """
    if not (root / PATIENTS_FILE).exists():
        return cases
    # Cases that are incomplete, or not listed in dataset.json, have their own problem or warning already.
    known = {problem.case for problem in problems if problem.case is not None}.union(others)
    try:
        return with_patients(cases, read_patients(root / PATIENTS_FILE, [case.name for case in cases], known))
    except DataError as error:
        problems.append(Problem(None, error.path, error.problem))
        return cases
