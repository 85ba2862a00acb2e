"""A comparison whose runs keep updates says what each site contributed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from server.comparison.scores import SCORES_FILE
from server.run_store.record_reader import CONTRIBUTIONS_FILE
from tests.server.comparison.test_compare import FEDERATION, SITES, command, results
from tests.server.reporting.test_report import Page


def test_contributions_are_the_means_of_those_of_the_seeds(tmp_path: Path) -> None:
    """Those of FedAvg: its models alone can be built again."""
    (tmp_path / "federation.yaml").write_text(FEDERATION + "  keep_updates_gb: 0.1\n", encoding="utf-8")
    assert command(tmp_path, arms="pooled,fedavg,fedavgm", seeds=2) == 0
    runs = tmp_path / "out/runs"
    assert {path.parent.name for path in runs.glob(f"*/*/{CONTRIBUTIONS_FILE}")} == {"fedavg"}
    found = [json.loads((runs / f"seed-{seed}/fedavg" / CONTRIBUTIONS_FILE).read_bytes())["sites"] for seed in (1, 2)]
    rows = {row["site"]: row for row in results(tmp_path)["contributed"]}
    assert sorted(rows) == SITES
    for site, row in rows.items():
        values = [part[site]["shapley"] for part in found]
        assert (row["arm"], row["error"], row["seeds"]) == ("fedavg", 0.0, 2)
        assert row["shapley"] == pytest.approx(mean(values)) and row["sd_over_seeds"] == pytest.approx(stdev(values))
    page = Page(tmp_path / "out/report.html")
    assert page.open == [] and "What each site contributed" in page.words


def test_contributions_that_are_there_stay_and_damaged_updates_take_no_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "federation.yaml").write_text(FEDERATION + "  keep_updates_gb: 0.1\n", encoding="utf-8")
    assert command(tmp_path, arms="fedavg", seeds=2) == 0
    kept, damaged = (tmp_path / f"out/runs/seed-{seed}/fedavg" for seed in (1, 2))
    before, dice = (kept / CONTRIBUTIONS_FILE).stat().st_mtime_ns, results(tmp_path)["arms"][0]["dice"]
    for name in (CONTRIBUTIONS_FILE, SCORES_FILE):
        (damaged / name).unlink()
    (vectors,) = damaged.glob("kept_updates/*/vectors.f32")
    vectors.write_bytes(b"")
    capsys.readouterr()
    assert command(tmp_path, arms="fedavg", seeds=2) == 0
    assert "fedavg, seed 2 has no contributions: " in capsys.readouterr().err
    assert results(tmp_path)["arms"][0]["dice"] == dice
    assert (kept / CONTRIBUTIONS_FILE).stat().st_mtime_ns == before
    (kept / CONTRIBUTIONS_FILE).unlink()
    assert command(tmp_path, arms="fedavg", seeds=2) == 0
    assert (kept / CONTRIBUTIONS_FILE).exists()
