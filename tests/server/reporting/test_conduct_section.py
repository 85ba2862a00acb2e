"""What each site did to the model, as the report tells it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from server.reporting.conduct_section import conduct_section
from server.run_store.record_reader import read_run
from tests.server.reporting.test_report import report
from tests.server.run_folder import round_line, write_json_lines, write_run_folder


def write_poisoned(folder: Path) -> Path:
    """Site uint8 pushes against the others for three rounds, longer and longer, and is quarantined after round 3."""
    made = write_run_folder(folder, rounds=4)
    lines = [round_line(number, 4) for number in range(1, 6)]
    for line in lines[:4]:
        for name, site in line["sites"].items():
            site |= {"length": 2.0, "scale": 1.0, "cosine": 0.75}
            if name == "uint8":
                site |= {"length": 4.0 * line["round"], "scale": 0.5 / line["round"], "cosine": -0.5}
    lines[2]["sites"]["uint8"] |= {"status": "refused", "reason": "opposed", "scale": None}
    del lines[3]["sites"]["uint8"], lines[4]["sites"]["uint8"]
    write_json_lines(made / "rounds.jsonl", lines)
    event = {"time": "2026-01-05T09:00:00+00:00", "round": 3}
    text = "uint8 is in quarantine: its updates pushed against those of the other sites"
    write_json_lines(
        made / "events.jsonl",
        [
            event | {"event": "alarm", "about": "quarantine uint8", "text": text},
            event | {"event": "site_quarantined", "site": "uint8", "reason": "opposed"},
            event | {"event": "site_quarantined", "site": "raw-low", "reason": "not-finite"},
            event | {"event": "site_released", "site": "raw-low"},
        ],
    )
    return made


def test_the_section_says_what_a_site_did(tmp_path: Path) -> None:
    section = conduct_section(read_run(write_poisoned(tmp_path / "run")))
    assert section is not None
    rows = {row["name"]: row for row in section["rows"]}
    assert rows["uint8"] == {
        "name": "uint8",
        "counted": 2,
        "refused": 1,
        "length": 8.0,
        "scaled": 2,
        "smallest_scale": 0.25,
        "cosine": -0.5,
        "lowest_cosine": -0.5,
        "gap": None,
        "quarantined": "opposed",
    }
    assert (rows["raw-low"]["scaled"], rows["raw-low"]["quarantined"], rows["raw-low"]["counted"]) == (0, None, 4)
    assert len(section["alarms"]) == 1


def test_the_page_shows_alarms_table_and_curves(tmp_path: Path) -> None:
    page = report(write_poisoned(tmp_path / "run"))
    assert page.open == []
    assert "What each site did to the model" in page.text
    assert "Alarm: uint8 is in quarantine" in page.text
    assert ["uint8", "2", "1", "8.000"] in [[cell.strip() for cell in row[:4]] for row in page.rows]
    assert "direction and length of each site" in page.source


def write_drifting(folder: Path) -> Path:
    """Sites score their own models in every second round; at uint8 the next global model is far below."""
    made = write_run_folder(folder, rounds=6)
    lines = [round_line(number, 6) for number in range(1, 8)]
    for line, following in itertools.pairwise(lines):
        for name, site in line["sites"].items():
            site |= {"length": 2.0, "scale": 1.0, "cosine": 0.75}
            if line["round"] % 2 == 0:
                own = 0.25 * line["round"] / 6 if name == "uint8" else 0.01
                site["local_dice"] = following["sites"][name]["mean_dice"] + own
    write_json_lines(made / "rounds.jsonl", lines)
    return made


def test_sites_whose_own_models_are_better_are_shown(tmp_path: Path) -> None:
    run = read_run(write_drifting(tmp_path / "run"))
    assert run.gaps("uint8") == {
        2: pytest.approx(0.25 / 3),
        4: pytest.approx(0.5 / 3),
        6: pytest.approx(0.25),
    }
    section = conduct_section(run)
    assert section is not None and section["has_gaps"]
    assert [row["gap"] for row in section["rows"]] == pytest.approx([0.01, 0.5 / 3, 0.01])
    page = report(run.folder)
    assert page.open == [] and "Own model" in page.text and "Dice above the global" in page.source


def test_the_page_has_no_such_column_where_nobody_was_asked(tmp_path: Path) -> None:
    page = report(write_poisoned(tmp_path / "run"))
    assert "Own model" not in page.text


def test_a_run_before_lengths_were_noted_has_no_such_section(tmp_path: Path) -> None:
    assert conduct_section(read_run(write_run_folder(tmp_path / "run", rounds=3))) is None
