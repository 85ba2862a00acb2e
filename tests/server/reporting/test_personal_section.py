"""The report on personal models: beside the global one, from a summary that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.reporting.personal_section import personal_section
from server.reporting.report import render_report
from server.run_store.record import RunRecord, Site

SUMMARY = {
    "method": "norms",
    "model_round": 3,
    "mean_dice": 0.85,
    "global_mean_dice": 0.75,
    "sites": {"<north>": {"mean_dice": 0.9, "global_mean_dice": 0.7}, "south": {"mean_dice": 0.8}},
}


def record(personal: object) -> RunRecord:
    return RunRecord(Path("run"), summary={"personal": personal}, sites=[Site("<north>", 3, 1, "")])


def test_every_site_and_the_mean_are_compared() -> None:
    found = personal_section(record(SUMMARY))
    assert found is not None and found["round"] == 3 and "never trained" in found["meaning"]
    assert [(row["name"], row["personal"], row["global"]) for row in found["rows"]] == [
        ("<north>", 0.9, 0.7),
        ("south", 0.8, None),
        ("", 0.85, 0.75),
    ]
    assert [row["difference"] for row in found["rows"]] == ["+0.200", None, "+0.100"]
    page = render_report(record(SUMMARY))
    assert "Personal models" in page and "+0.200" in page and "<north>" not in page


def test_scores_that_nobody_shared_are_missed_and_runs_without_personal_models_have_no_section() -> None:
    silent = record({"method": "ditto", "model_round": None, "sites": {}})
    assert "No site has shared the score of its personal model" in render_report(silent)
    assert personal_section(record(None)) is None and "Personal models" not in render_report(record(None))


@pytest.mark.parametrize("damaged", ["norms", {"sites": 3}, {"sites": {"a": "b"}}, {"model_round": "x", "method": 7}])
def test_a_damaged_summary_leaves_gaps(damaged: object) -> None:
    assert "Fedvox report" in render_report(record(damaged))
