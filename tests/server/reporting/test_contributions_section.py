"""What each site contributed, as the report tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.reporting.contributions_section import contributions_section
from server.run_store.record_reader import CONTRIBUTIONS_FILE, read_run
from tests.server.reporting.test_report import report
from tests.server.run_folder import write_run_folder

MINUS = "\N{MINUS SIGN}"
SITES = {
    "uint8": {"shapley": -0.01, "error": 0.004, "without": -0.02},
    "raw-low": {"shapley": 0.5, "error": 0.01, "without": 0.25},
    "raw-high": {"shapley": 0.3, "error": 0.02, "without": 0.0},
}
FOUND = {"sites": SITES, "gain": 0.79, "rounds": [1, 4, 7], "orders": 20, "patients": 5, "scored": 99}


def written(folder: Path, content: str) -> Path:
    made = write_run_folder(folder, rounds=3)
    (made / CONTRIBUTIONS_FILE).write_text(content, encoding="utf-8")
    return made


def test_the_largest_comes_first_with_its_error(tmp_path: Path) -> None:
    page = report(written(tmp_path / "run", json.dumps(FOUND)))
    rows = [[cell.strip() for cell in row] for row in page.rows]
    places = [rows.index(row) for row in rows if len(row) == 4 and row[3] in ("+0.2500", "0.0000", f"{MINUS}0.0200")]
    assert page.open == [] and [rows[place][:3] for place in places] == [
        ["raw-low", "+0.5000", "0.0100"],
        ["raw-high", "+0.3000", "0.0200"],
        ["uint8", f"{MINUS}0.0100", "0.0040"],
    ]
    assert "in 3 rounds" in page.text and "at most 5 validation scans per site" in page.text
    assert "over 20 random orders" in page.text and "+0.7900" in page.text


def test_exact_values_have_no_error(tmp_path: Path) -> None:
    exact = FOUND | {"orders": 0, "patients": None}
    section = contributions_section(read_run(written(tmp_path / "run", json.dumps(exact))))
    assert section is not None and section["orders"] is None and section["patients"] is None
    assert {row["error"] for row in section["rows"]} == {None}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sites": 3}'])
def test_what_is_missing_or_damaged_leaves_a_gap(tmp_path: Path, content: Any) -> None:
    page = report(written(tmp_path / "run", content))
    assert page.open == [] and "What each site contributed" not in page.text
