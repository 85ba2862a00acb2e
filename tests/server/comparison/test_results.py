"""The figures of a comparison, from scores whose results are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.formatting import fixed
from server.comparison.arms import parse_arms
from server.comparison.folder import Question
from server.comparison.report import write_comparison_report
from server.comparison.results import results_of
from server.comparison.runs import Setting, runs_of
from server.comparison.scores import ModelScores, Score
from server.simulation.experiment import SimulationOptions
from server.simulation.partition import SiteCases, SitePartition
from tests import tiny
from tests.server.reporting.test_report import Page

SITES = {"north": 6, "south": 12}
BASE = np.random.default_rng(0).uniform(0.5, 0.8, size=18)
"""Dice of each patient with FedAvg."""
GAINS = {
    # arm and model's site -> what it gains on FedAvg at north and south
    ("fedavg", ""): (0.0, 0.0),
    ("fedprox", ""): (0.1, -0.01),
    ("pooled", ""): (0.1, 0.1),
    ("local", "north"): (0.05, -0.3),
    ("local", "south"): (-0.3, -0.05),
}
ARMS = "local,pooled,fedavg,fedprox"


def scores(arm: str, model_site: str, seed: int, noise: float) -> ModelScores:
    """Every patient of a site, with the same gain but for ``noise``, in which seeds differ."""
    rng = np.random.default_rng([seed, len(arm), len(model_site)])
    sites = [site for site, count in SITES.items() for _ in range(count)]
    found = []
    for index, site in enumerate(sites):
        dice = BASE[index] + GAINS[arm, model_site][list(SITES).index(site)] + noise * rng.normal()
        values = {"dice": float(dice), "hd95_mm": 10 * (1 - float(dice)), "nsd": float(dice) / 2}
        found.append(Score(site, f"patient_{index}", f"scan_{index}", 1, values))
    return ModelScores(arm, seed, model_site, tuple(found))


@pytest.fixture
def compared(tmp_path: Path) -> dict[str, Any]:
    return compare(tmp_path)


def compare(out: Path, arms: str = ARMS, seeds: tuple[int, ...] = (0, 1), noise: float = 0.0) -> dict[str, Any]:
    config = tiny.federation(rounds=4, training={"local_steps": 10})
    sites = {name: SiteCases(train=(f"{name}-t",), validation=(f"{name}-v",)) for name in SITES}
    owners = {case: case for site in sites.values() for case in (*site.train, *site.validation)}
    partition = SitePartition(method="column", seed=0, sites=sites)
    setting = Setting(config, tiny.plan(), partition, owners, SimulationOptions(None, out))
    question = Question(config, parse_arms(arms), seeds)
    runs = [run for seed in seeds for arm in question.arms for run in runs_of(setting, arm, seed)]
    models = [scores(run.arm.name, run.model_site, run.seed, noise) for run in runs]
    return results_of(setting, question, models, [(run, True) for run in runs], {})


def test_means_count_patients_or_sites(compared: dict[str, Any]) -> None:
    rows = {row["arm"]: row for row in compared["arms"]}
    assert rows["fedavg"]["dice"]["value"] == pytest.approx(BASE.mean())
    assert rows["fedavg"]["dice"]["patients"] == 18
    assert rows["fedavg"]["dice_of_sites"]["value"] == pytest.approx((BASE[:6].mean() + BASE[6:].mean()) / 2)
    own = np.concatenate([BASE[:6] + 0.05, BASE[6:] - 0.05])
    assert rows["local"]["dice"]["value"] == pytest.approx(own.mean())
    assert rows["local"]["hd95_mm"]["value"] == pytest.approx(10 * (1 - own.mean()))
    assert rows["local"]["nsd"]["value"] == pytest.approx(own.mean() / 2)
    assert rows["local"]["sd_over_seeds"] == pytest.approx(0)
    assert {name: row["steps"] for name, row in rows.items()} == {
        "local": 40,
        "pooled": 80,
        "fedavg": 40,
        "fedprox": 40,
    }


def test_the_matrix_has_every_model_at_every_site(compared: dict[str, Any]) -> None:
    rows = {(row["arm"], row["model_site"]): row["dice"] for row in compared["matrix"]}
    assert set(rows) == set(GAINS)
    for model, gains in GAINS.items():
        assert rows[model]["north"]["value"] == pytest.approx(BASE[:6].mean() + gains[0])
        assert rows[model]["south"]["value"] == pytest.approx(BASE[6:].mean() + gains[1])
        assert rows[model]["south"]["patients"] == 12
        assert rows[model]["south"]["low"] < rows[model]["south"]["value"] < rows[model]["south"]["high"]


def test_a_site_that_is_worse_off_than_alone_is_named(compared: dict[str, Any]) -> None:
    rows = {(row["arm"], row["site"]): row for row in compared["against_alone"]}
    assert set(rows) == {(arm, site) for arm in ("fedavg", "fedprox") for site in SITES}
    found = rows["fedavg", "north"]
    assert (found["worse"], found["clearly_worse"]) == (True, True)
    assert [found["difference"][key] for key in ("value", "low", "high")] == pytest.approx([-0.05] * 3)
    assert not rows["fedavg", "south"]["worse"]
    assert not rows["fedprox", "north"]["worse"]


def test_worse_by_chance_is_not_clearly_worse(tmp_path: Path) -> None:
    rows = compare(tmp_path, "local,fedavg", (0,), noise=0.5)["against_alone"]
    unclear = [row for row in rows if row["worse"] and not row["clearly_worse"]]
    assert unclear
    assert all(row["difference"]["low"] < 0 <= row["difference"]["high"] for row in unclear)


def test_arms_are_tested_against_the_reference_with_a_correction_for_their_number(compared: dict[str, Any]) -> None:
    rows = {row["arm"]: row for row in compared["against_reference"]}
    assert list(rows) == ["local", "pooled", "fedprox"]
    assert rows["pooled"]["difference"]["value"] == pytest.approx(0.1)
    assert rows["pooled"]["p"] == pytest.approx(min(row["p"] for row in rows.values()))
    assert rows["pooled"]["p_holm"] == pytest.approx(3 * rows["pooled"]["p"])
    assert all(row["p"] <= row["p_holm"] <= 1 for row in rows.values())
    assert rows["fedprox"]["difference"]["value"] == pytest.approx((6 * 0.1 - 12 * 0.01) / 18)


def test_the_best_federated_arm_is_compared_with_pooled_training_and_the_reference(compared: dict[str, Any]) -> None:
    best = compared["best"]
    assert best["arm"] == "fedprox"
    assert best["margin"]["value"] == pytest.approx(0.48 / 18)
    sites = [(BASE[:6] + 0.1).mean() + (BASE[6:] - 0.01).mean(), (BASE[:6] + 0.1).mean() + (BASE[6:] + 0.1).mean()]
    assert best["ratio_to_pooled_of_sites"]["value"] == pytest.approx(sites[0] / sites[1])
    assert best["ratio_to_pooled"]["value"] == pytest.approx((BASE.mean() + 0.48 / 18) / (BASE.mean() + 0.1))


def test_without_a_reference_or_a_baseline_there_is_no_test(tmp_path: Path) -> None:
    found = compare(tmp_path, "pooled,fedprox", (0,))
    assert (found["against_reference"], found["against_alone"]) == ([], [])
    assert found["arms"][0]["sd_over_seeds"] is None
    page = Page(write_comparison_report(tmp_path, found))
    assert "There is no test" in " ".join(page.words)


def test_the_page_shows_what_was_found(compared: dict[str, Any], tmp_path: Path) -> None:
    page = Page(write_comparison_report(tmp_path, compared))
    assert not page.open
    alone = {tuple(row[:2]): row[-1] for row in page.rows if len(row) == 5 and row[1] in SITES}
    assert alone["fedavg", "north"] == "worse than alone"
    assert not alone["fedavg", "south"]
    assert any(row[0] == "fedavg" and row[1].startswith(fixed(BASE.mean(), 3)) for row in page.rows)
    assert "1 of 2" in " ".join(page.words)
