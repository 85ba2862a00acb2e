"""Which cases are scans of one patient: a CSV table in the dataset folder.

``patients.csv`` has the columns ``case`` and ``patient``, and a row for every case. Where it is, it counts: for whom
privacy protects, and for who is trained on and who is scored on. Without it every case is a patient of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from common.errors import DataError

PATIENTS_FILE = "patients.csv"


def read_column(path: Path, key: str, column: str) -> dict[str, tuple[str, int]]:
    """Two columns of a CSV file with a header.

    Parameters
    ----------
    path
        the file, UTF-8.
    key
        name of the column that holds each value once.
    column
        name of the other.

    Returns
    -------
    dict[str, tuple[str, int]]
        For each value of ``key``, that of ``column`` and the line that it stands in, from 1.

    Raises
    ------
    DataError
        the file cannot be read, lacks a column, or holds a value of ``key`` twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or []
            for name in (key, column):
                if name not in names:
                    raise DataError(path, f"has no column {name}; its columns are {', '.join(names) or 'none'}")
            values: dict[str, tuple[str, int]] = {}
            for row in reader:
                found = (row[key] or "").strip()
                if found in values:
                    raise DataError(path, f"line {reader.line_num}: {key} {found} stands twice; keep one row per {key}")
                values[found] = ((row[column] or "").strip(), reader.line_num)
            return values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"cannot be read as CSV: {error}") from None


def read_patients(
    path: Path, cases: Collection[str], others: Collection[str] = (), column: str = "patient", case_column: str = "case"
) -> dict[str, str]:
    """Case name -> patient.

    Parameters
    ----------
    path
        the table.
    cases
        names of all cases, each of which must be in the table.
    others
        names that may be in it.
    column, case_column
        of the table.

    Raises
    ------
    DataError
        the table names a case that is not there, leaves one out, or has no patient for one.
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
        raise DataError(path, f"has no line for case {missing[0]}{more}; every case needs one, also of a single scan")
    return {case: table[case][0] for case in cases}
