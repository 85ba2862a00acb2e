"""A comparison whose runs keep updates says what each site contributed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from common.config.federation import FederationConfig
from server.comparison.scores import SCORES_FILE
from server.comparison.valuing import MOST_SCANS, affordable
from server.rounds.kept_updates import KEPT, rounds_to_keep
from server.run_store.record_reader import CONTRIBUTIONS_FILE
from tests import tiny
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
    assert any(words.startswith("No algorithm beats fedavg: fedavgm differs by ") for words in page.words)


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


def test_a_comparison_says_by_itself_what_each_site_contributed_and_gives_the_same_scores(tmp_path: Path) -> None:
    """From as many models as the run itself scores: with two sites, one round of three. Whatever was kept goes."""
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "federation.yaml").write_text(FEDERATION.replace("rounds: 1", "rounds: 3"), encoding="utf-8")
    assert command(tmp_path / "with", arms="fedavg") == 0
    assert command(tmp_path / "without", "--no-contributions", arms="fedavg") == 0
    one, other = ((tmp_path / name / "out/scores.csv").read_bytes() for name in ("with", "without"))
    assert one == other
    run = tmp_path / "with/out/runs/seed-1/fedavg"
    found = json.loads((run / CONTRIBUTIONS_FILE).read_bytes())
    assert (found["rounds"], found["patients"], found["scored"]) == ([1], MOST_SCANS, 4)
    assert not (run / KEPT).exists()
    rows = results(tmp_path / "with")["contributed"]
    assert [(row["site"], row["rounds"], row["scans"]) for row in rows] == [(site, 1, MOST_SCANS) for site in SITES]
    assert results(tmp_path / "without")["contributed"] == []
    texts = [" ".join(Page(tmp_path / name / "out/report.html").words) for name in ("with", "without")]
    assert "1 of 3" in texts[0] and "at most 8" in texts[0]
    assert "Not computed: it needs the arm fedavg or fedprox" in texts[1]


@pytest.mark.parametrize(
    ("rounds", "validation", "size", "expected"),
    [
        (18, [5, 27, 11], 1_300_000, (4, 8)),  # hippocampus: 8 models on 21 scans, and 19 x 43 are scored
        (1, [1, 2], 1000, None),
        (3, [1, 2], 1000, (1, 8)),
        (20, [20] * 8, 1000, (1, 8)),  # 34 models on 64 scans, and 21 x 160 are scored
        (20, [10] * 20, 1000, (1, 2)),
        (20, [10] * 64, 1000, None),
        (20, [10] * 3, 10**9, None),  # a round takes 16 GB
        (20, [100] * 3, 30_000_000, (4, 8)),  # a round takes 0.48 GB
        (20, [0, 0], 1000, None),
    ],
)
def test_no_more_scans_are_scored_than_in_the_run_itself(
    rounds: int, validation: list[int], size: int, expected: tuple[int, int] | None
) -> None:
    found = affordable(rounds, validation, size)
    if expected is None or found is None:
        assert found is expected
        return
    kept = rounds_to_keep(keeping(rounds, found.keep_gb), len(validation), size)
    assert (len(kept), found.sampling.patients) == expected


def keeping(rounds: int, gigabytes: float) -> FederationConfig:
    simulation = {"partition": {"method": "iid", "sites": 2}, "keep_updates_gb": gigabytes}
    return tiny.federation(rounds, simulation=simulation)
