"""The model card: what it says, with figures worked out by hand, and that no name becomes a tag, a link or a row."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from common.formatting import visible
from server.export.card_scores import hoeffding_half_width, site_scores
from server.export.model_card import CardFacts, markdown, model_card
from server.run_store.record_reader import read_run
from tests.exported import networked_run
from tests.server.run_folder import write_run_folder


def card_of(folder: Path, audited: bool, **provenance: object) -> str:
    run = read_run(folder)
    assert run.plan is not None
    about = {"federation": "hippocampus", "round": 10, "rounds": 10} | provenance
    return model_card(CardFacts(run, run.plan, about, "ab" * 32, audited))


def row_of(card: str, site: str, columns: int) -> list[str]:
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:1] == "|"]
    return next(row for row in rows if row[0] == site and len(row) == columns)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_folder(tmp_path_factory.mktemp("simulated") / "run")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networked_run(tmp_path_factory.mktemp("network"))


@pytest.fixture
def changed(network: Path, tmp_path: Path) -> Path:
    """A copy of the run over a network, to be changed."""
    return Path(shutil.copytree(network, tmp_path / "changed"))


def change_rounds(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (run / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_front_matter_is_what_the_hub_reads(simulated: Path) -> None:
    text = card_of(simulated, audited=False)
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["pipeline_tag"] == "image-segmentation" and about["library_name"] == "fedvox"
    [model] = about["model-index"]
    assert [result["dataset"]["name"] for result in model["results"]] == [
        "hippocampus: raw-low",
        "hippocampus: uint8",
        "hippocampus: raw-high",
    ]
    for result in model["results"]:
        assert set(result) == {"task", "dataset", "metrics"} and {"type", "name"} <= set(result["dataset"])
        assert result["metrics"][0]["type"] == "dice" and 0.8 < result["metrics"][0]["value"] < 1
    assert body.startswith("\n# hippocampus\n")


def test_simulated_sites_have_bootstrap_intervals_around_the_mean_of_their_cases(simulated: Path) -> None:
    run = read_run(simulated)
    for score in site_scores(run, 10).sites:
        values: dict[str, list[float]] = {}
        for case in run.cases:
            if case.site == score.site:
                values.setdefault(case.case, []).append(case.metrics["dice"])
        means = np.array([np.mean(dice) for dice in values.values()])
        # The bootstrap of a mean is close to its normal approximation.
        half = 1.96 * means.std() / math.sqrt(len(means))
        assert score.dice == pytest.approx(means.mean())
        assert score.low == pytest.approx(means.mean() - half, abs=0.3 * half)
        assert score.high == pytest.approx(means.mean() + half, abs=0.3 * half)
    card = card_of(simulated, audited=False)
    assert row_of(card, "raw-low", 4) == ["raw-low", "10", "117", "29"]
    assert row_of(card, "all that trained", 4) == ["all that trained", "", "177", "43"]
    assert "nobody has signed this model" in card and "not a medical device" in card
    assert "training scans" in card and "patients |" not in card and "No licence is stated here" in card


def test_sites_of_a_network_have_the_bound_that_holds_for_any_scores(network: Path) -> None:
    card = card_of(network, audited=True, federation="tiny", round=1, strategy="fedavg")
    # Eight scans with a mean of 0.9: 0.9 - sqrt(ln(40) / 16) = 0.420.
    assert row_of(card, "north", 6) == ["north", "8", "0.900", "0.420 to 1.000", "0.900", "0.900"]
    assert "release.jsonl" in card and "Hoeffding" in card


def test_nothing_of_few_scans_is_published(network: Path) -> None:
    """A site with a single validation scan: its score would be that scan's."""
    card = card_of(network, audited=True, round=1)
    assert row_of(card, "west", 4) == ["west", "1", "fewer than 5", "fewer than 5"]
    assert row_of(card, "west", 6) == ["west", "fewer than 5", "–", "–", "–", "–"]
    assert "0.123" not in card
    # Neither do sums and means tell it.
    assert row_of(card, "all that trained", 4) == ["all that trained", "", "at least 19", "at least 13"]
    assert "Mean over sites with a score: 0.750." in card


def test_a_site_whose_updates_were_refused_did_not_train_the_model(changed: Path) -> None:
    change_rounds(changed, lambda line: line["sites"]["north"].update(status="refused"))
    card = card_of(changed, audited=True, round=1)
    assert row_of(card, "north", 4) == ["north", "0", "12", "8"]
    assert row_of(card, "all that trained", 4)[2] == "at least 7"


def test_a_run_without_scores_says_so(changed: Path) -> None:
    change_rounds(changed, lambda line: [site.update(mean_dice=None, dice={}) for site in line["sites"].values()])
    card = card_of(changed, audited=True, round=1)
    assert "There is no score to show." in card and "optimistic" not in card
    assert row_of(card, "north", 6) == ["north", "8", "–", "–", "–", "–"]
    assert "model-index" not in card


def test_the_card_says_which_model_training_started_from(changed: Path) -> None:
    run = changed
    assert row_of(card_of(run, audited=True), "started from", 2)[1] == "weights drawn at random"
    federation = run / "federation.yaml"
    content = yaml.safe_load(federation.read_text()) | {"initial_model_sha256": "cd" * 32}
    content |= {"privacy": {"epsilon": 8.0, "delta": 1e-5}, "strategy": {"average_rounds": 3}}
    federation.write_text(yaml.safe_dump(content))
    card = card_of(run, audited=True, round=1)
    assert row_of(card, "started from", 2)[1] == f"a model, SHA-256 {'cd' * 32}"
    assert row_of(card, "last model", 2)[1] == "the mean of the last 3 rounds' models"
    assert "The model that training started from is outside of it." in card
    assert "whether the model that training started from had seen them" in card
    # Under differential privacy sites of a network count patients.
    assert "training patients" in card and "training scans" not in card


def test_the_bound_holds() -> None:
    """Of fair coins, the scores that spread most, at most 5 % of means are further away than the bound."""
    means = np.random.default_rng(0).integers(0, 2, (20_000, 10)).mean(axis=1)
    missed = np.mean(np.abs(means - 0.5) > hoeffding_half_width(10))
    assert missed <= 0.05
    assert hoeffding_half_width(40) == pytest.approx(hoeffding_half_width(10) / 2)


def test_private_runs_say_what_was_spent_and_give_no_interval(simulated: Path, changed: Path) -> None:
    folder = changed
    federation = folder / "federation.yaml"
    content = yaml.safe_load(federation.read_text())
    content["privacy"] = {"epsilon": 8.0, "delta": 1e-5, "validation": "noised"}
    federation.write_text(yaml.safe_dump(content))
    rounds = folder / "rounds.jsonl"
    rounds.write_text(rounds.read_text().replace('"epsilon": null', '"epsilon": 2.5'))
    card = card_of(folder, audited=True, round=1)
    assert "epsilon 8 at delta 1e-05" in card
    assert row_of(card, "south", 2) == ["south", "2.5"]
    assert row_of(card, "south", 6)[3] == "–"
    assert "carry the noise" in card
    assert "without differential privacy" in card_of(simulated, audited=False)


EVIL = "x\n---\n# y <script>a</script> | [b](http://c) `d` www.e \x1b[31m"


def assert_harmless(card: str) -> str:
    """Check that a card with this name in it holds no markup that it made; return the part after the front matter."""
    body = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)<|http://|www\.|\x1b|(?<!\\)`d|(?<!\\)\[b", body)
    assert len(re.findall(r"^# ", body, re.MULTILINE)) == 1
    return body


def test_no_site_of_a_dataset_becomes_markup(tmp_path: Path) -> None:
    """Simulated sites are called as a column of a table says."""
    card = card_of(write_run_folder(tmp_path / "run", sites=(EVIL, "null")), audited=False)
    assert_harmless(card)
    about = yaml.safe_load(card.split("---\n")[1])
    names = [result["dataset"]["name"] for result in about["model-index"][0]["results"]]
    assert names == [f"hippocampus: {visible(EVIL)}", "hippocampus: null"]


def test_no_name_becomes_a_tag_a_link_a_row_or_front_matter(network: Path) -> None:
    evil = EVIL
    about = {"description": evil, "note": evil, "modality": evil, "strategy": evil, "started": evil, "run": evil}
    card = card_of(network, audited=True, federation=evil, round=1, **about)
    body = assert_harmless(card)
    # A label of this federation is called "shell | <b>".
    assert "shell \\| \\<b\\>" in body
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == visible(evil)
    assert markdown("- a_b") == "\\- a\\_b" and markdown("raw-low") == "raw-low"
    assert len(markdown("y" * 500)) < 100
