from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.run_store.folder import RunFolder
from server.tracking.run_reader import RunReader
from server.tracking.values import LONGEST_VALUE, Metric, metrics_of, parameters_of, safe_name
from tests.server.tracking.growing_run import GrowingRun


def test_scores_belong_to_the_model_before_the_round_and_all_else_to_the_round(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    committed = RunReader(run.path).new_rounds()[1]
    found = {metric.name: metric for metric in metrics_of(committed, RunFolder(run.path).plan())}
    line, time = run.lines[1], committed.time
    assert found["mean_dice"] == Metric("mean_dice", line["mean_dice"], 1, time)
    assert found["dice.anterior"] == Metric("dice.anterior", line["dice"]["1"], 1, time)
    assert found["train_loss"] == Metric("train_loss", line["train_loss"], 2, time)
    assert found["sites_counted"].value == 2
    assert found["site.south/seconds"].value == line["sites"]["south"]["seconds"]
    assert "site.south/epsilon" not in found  # null
    assert time == pytest.approx(RunReader(run.path).started() + sum(line["seconds"] for line in run.lines[:2]))


def test_only_committed_rounds_are_read_and_each_once(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run")
    reader = RunReader(run.path)
    assert reader.new_rounds() == []
    run.begin()
    run.commit(1)
    run.leave_uncommitted(2)
    assert [found.line for found in reader.new_rounds()] == run.lines[:1]
    assert reader.new_rounds() == []
    run.drop_uncommitted()
    run.commit(2)
    run.commit(3)
    times = reader.new_rounds()
    assert [found.line for found in times] == run.lines[1:3]
    assert times == RunReader(run.path).new_rounds()[1:]


def test_parameters_are_flat_short_and_without_null(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    with (run.path / "federation.yaml").open("a") as file:
        file.write(f"description: {'x' * 600}\nprivacy: null\n")
    found = parameters_of(RunFolder(run.path))
    assert found["training.learning_rate"] == "0.002"
    assert found["plan.patch_size"] == "[40, 56, 40]"
    assert len(found["description"]) == LONGEST_VALUE
    assert "privacy" not in found


@settings(max_examples=50)
@given(st.text(max_size=300), st.text(max_size=300))
def test_names_are_safe_and_different(first: str, second: str) -> None:
    names = [safe_name(text) for text in (first, second)]
    assert all(name.isascii() and name.isprintable() and "/" not in name and len(name) <= 110 for name in names)
    assert all(name.strip(". ") for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_usual_names_stay() -> None:
    assert safe_name("phantom-site-a") == "phantom-site-a"
