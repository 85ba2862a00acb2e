"""The figures of a comparison, from scores whose results are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import stdev
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


def compare(
    out: Path,
    arms: str = ARMS,
    seeds: tuple[int, ...] = (0, 1),
    noise: float = 0.0,
    patients: dict[int, set[int]] | None = None,
    missing: tuple[tuple[str, int], ...] = (),
) -> dict[str, Any]:
    """Compare; ``patients`` are those that validate with a seed (all), and arm and seed of runs may be ``missing``."""
    config = tiny.federation(rounds=4, training={"local_steps": 10})
    sites = {name: SiteCases(train=(f"{name}-t",), validation=(f"{name}-v",)) for name in SITES}
    owners = {case: case for site in sites.values() for case in (*site.train, *site.validation)}
    partition = SitePartition(method="column", seed=0, sites=sites)
    setting = Setting(config, tiny.plan(), partition, owners, SimulationOptions(None, out))
    question = Question(config, parse_arms(arms), seeds)
    runs = [run for seed in seeds for arm in question.arms for run in runs_of(setting, arm, seed)]
    done = [(run, (run.arm.name, run.seed) not in missing) for run in runs]
    models = [scores(run.arm.name, run.model_site, run.seed, noise) for run, finished in done if finished]
    if patients is not None:
        names = {seed: {f"patient_{index}" for index in found} for seed, found in patients.items()}
        models = [
            replace(model, scores=tuple(score for score in model.scores if score.patient in names[model.seed]))
            for model in models
        ]
    return results_of(setting, question, models, done, {})


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


def test_the_spread_over_seeds_beside_a_difference_is_that_of_the_pairs(tmp_path: Path) -> None:
    """Every seed has other patients, who differ much; what an arm gains on them is the same in all seeds."""
    folds = {0: {0, 1, 6, 7}, 1: {2, 3, 8, 9}}
    found = compare(tmp_path, "pooled,fedavg,fedprox", patients=folds)
    rows = {row["arm"]: row for row in found["against_reference"]}
    assert rows["pooled"]["sd_over_seeds"] == pytest.approx(0)
    assert rows["fedprox"]["sd_over_seeds"] == pytest.approx(0)
    means = [BASE[sorted(fold)].mean() for fold in folds.values()]
    assert found["arms"][0]["sd_over_seeds"] == pytest.approx(stdev(means)) and stdev(means) > 0.01


def test_arms_are_ranked_over_the_patients_that_all_have(tmp_path: Path) -> None:
    """Without the seed of the worst patients, FedAvg looks best, and is not."""
    order = np.argsort(BASE)
    folds = {0: set(order[9:].tolist()), 1: set(order[:9].tolist())}
    found = compare(tmp_path, "local,fedavg,fedprox", patients=folds, missing=(("fedavg", 1),))
    rows = {row["arm"]: row for row in found["arms"]}
    assert rows["fedavg"]["dice"]["value"] > rows["fedprox"]["dice"]["value"]
    assert (rows["fedavg"]["runs_done"], rows["fedavg"]["runs"], rows["fedavg"]["seeds"]) == (1, 2, [0])
    assert (rows["local"]["runs_done"], rows["local"]["runs"], rows["local"]["seeds"]) == (4, 4, [0, 1])
    assert found["best"]["arm"] == "fedprox" and found["best"]["dice"]["patients"] == 9
    page = Page(write_comparison_report(tmp_path, found))
    names = {row[0].split(" *")[0]: row for row in page.rows if row[0].split(" ")[0] in rows and len(row) > 7}
    assert names["fedavg"][0].split() == ["fedavg", "*", "1", "of", "2", "runs"]
    assert (names["fedavg"][-2:], names["fedprox"][-2:]) == (["9", "1"], ["18", "2"])
    marked = page.source.split('<td class="name">fedavg *</td>')[1].split("</tr>")[0]
    assert fixed(rows["fedavg"]["dice"]["value"], 3) in marked and "<strong>" not in marked
    nothing = compare(tmp_path, "fedavg,fedprox", patients=folds, missing=(("fedavg", 1), ("fedprox", 0)))
    assert nothing["best"] is None


@pytest.mark.parametrize(("patients", "clearly"), [(5, False), (6, True)])
def test_few_patients_are_no_evidence(tmp_path: Path, patients: int, clearly: bool) -> None:
    """All of them are worse off by the same; only from six on, chance is an unlikely reason."""
    found = compare(tmp_path, "local,fedavg", (0,), patients={0: set(range(patients))})
    (row,) = found["against_alone"]
    assert (row["worse"], row["clearly_worse"], row["too_few"]) == (True, clearly, not clearly)
    text = Page(write_comparison_report(tmp_path, found)).text
    assert ("too few patients to tell" in text) is not clearly
    assert "not corrected for the number of sites and arms" in text


def test_the_page_says_what_differs_between_arms_and_which_sites_it_plots(tmp_path: Path) -> None:
    plain = compare(tmp_path, "fedavg,fedprox,local")
    text = Page(write_comparison_report(tmp_path, plain)).text
    assert "but for what the table says" not in text and "The plot shows the first" not in text
    many = {f"site_{index}": "" for index in range(9)}
    changed = plain | {"settings_differ": True, "personal": ["fedbn"], "sites": plain["sites"] | many}
    for row in changed["matrix"]:
        for column in ("dice", "hd95_mm", "nsd"):
            row[column] |= dict.fromkeys(many)
    text = Page(write_comparison_report(tmp_path, changed)).text
    assert "but for what the table says" in text
    assert "The plot shows the first 8 of 11 sites" in text
    assert "Rows of fedbn have the scores of every site's personal model, on the site's own patients only" in text


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
