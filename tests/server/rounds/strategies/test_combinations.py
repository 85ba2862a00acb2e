"""Every cell of the table in deploy/docs/algorithms.md: what it says can be combined can, and the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from common.config.algorithms import OPTIONS, Algorithm
from common.config.federation import FederationConfig, TrainingConfig
from common.config.personal import Method
from common.config.strategy import StrategyConfig
from common.protocol.codec import Vector
from common.weights.encoding import Encoding
from server.rounds.strategies.registry import STRATEGIES, make_strategy
from tests import tiny
from tests.server.rounds.strategies.quadratic import optima, train

PAGE = Path(__file__).parents[4] / "deploy" / "docs" / "algorithms.md"
COLUMNS = [
    "`strategy.name`",
    "`privacy`",
    "`bfloat16`",
    "`int8`",
    "`training.optimizer`",
    "`strategy.weights`",
    "sites",
]
PERSONAL_COLUMNS = [
    "`personal.method`",
    "`privacy`",
    "`bfloat16`",
    "`int8`",
    "`strategy.name`",
    "`training.trainable`",
]
PRIVACY = {"epsilon": 8, "delta": 1e-5}
SITES = 7


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(columns: list[str]) -> dict[str, dict[str, str]]:
    """The rows of the table with these columns, by their first cell."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if cells(line) == columns)
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        values = cells(line)
        rows[values[0].strip("`")] = dict(zip(columns, values, strict=True))
    return rows


ROWS, PERSONAL = table(COLUMNS), table(PERSONAL_COLUMNS)


def test_every_algorithm_has_a_row_and_a_strategy_and_options() -> None:
    assert list(ROWS) == list(get_args(Algorithm)) == list(OPTIONS) == list(STRATEGIES)


def federation(name: str, **values: object) -> FederationConfig:
    """One with the algorithm, and an optimizer that it works with."""
    optimizer = "sgd" if ROWS[name]["`training.optimizer`"] == "sgd" else "adamw"
    return tiny.federation(strategy={"name": name}, training={"optimizer": optimizer}, **values)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizers_that_an_algorithm_does_not_work_with_are_refused(name: str, optimizer: str) -> None:
    training = {"optimizer": optimizer}
    if ROWS[name]["`training.optimizer`"] in ("all", optimizer):
        assert tiny.federation(strategy={"name": name}, training=training).training.optimizer == optimizer
        return
    with pytest.raises(ValueError, match=rf"{name} needs training\.optimizer sgd"):
        tiny.federation(strategy={"name": name}, training=training)


def noisy(number: int, update: Vector) -> Vector:
    return (update + 0.02 * np.random.default_rng(number).standard_normal(update.size)).astype(np.float32)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("private", [False, True], ids=["", "private"])
@pytest.mark.parametrize("upload", ["float32", "bfloat16", "int8"])
def test_what_the_table_says(name: str, private: bool, upload: Encoding) -> None:
    row = ROWS[name]
    assert upload == "float32" or row[f"`{upload}`"] == "yes", "refused uploads need a test of their refusal here"
    if private and row["`privacy`"] == "no":
        with pytest.raises(ValueError, match=f"{name} does not work with privacy: .*; choose"):
            federation(name, privacy=PRIVACY)
        return
    config = federation(name, privacy=PRIVACY if private else None, transport={"upload": upload})
    goals = optima(SITES, 100)
    found = train(
        make_strategy(config, SITES), goals, 30, upload, dict.fromkeys(range(SITES), noisy) if private else None
    )
    exact = train(make_strategy(config, SITES), goals, 30)
    np.testing.assert_allclose(found, exact, atol=0.3 if private else 0.05)
    assert np.abs(exact).mean() > 0.1


@pytest.mark.parametrize("name", ROWS)
def test_the_smallest_number_of_sites(name: str) -> None:
    config, least = federation(name), int(ROWS[name]["sites"])
    assert make_strategy(config, least)
    assert config.strategy.least_updates == least


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("weights", ["patients", "uniform", "capped:2"])
def test_weights_that_an_algorithm_ignores_are_refused(name: str, weights: str) -> None:
    if ROWS[name]["`strategy.weights`"] in ("all", weights):
        assert StrategyConfig(name=name, weights=weights).weights == weights
        return
    with pytest.raises(ValueError, match="weights"):
        StrategyConfig(name=name, weights=weights)


def test_every_personal_method_has_a_row() -> None:
    assert list(PERSONAL) == list(get_args(Method))


@pytest.mark.parametrize("method", PERSONAL)
@pytest.mark.parametrize("trainable", get_args(TrainingConfig.model_fields["trainable"].annotation))
def test_parts_that_a_personal_method_cannot_train_are_refused(method: str, trainable: str) -> None:
    values = {"personal": {"method": method}, "training": {"trainable": trainable}}
    if trainable in PERSONAL[method]["`training.trainable`"].split(", "):
        assert tiny.federation(**values).personal is not None
        return
    with pytest.raises(ValueError, match="remove personal"):
        tiny.federation(**values)


@pytest.mark.parametrize("method", PERSONAL)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("upload", ["float32", "bfloat16", "int8"])
def test_personal_models_go_with_every_algorithm(method: str, name: str, upload: Encoding) -> None:
    """Weights that sites keep, whose updates are zero, stay as they were at the server."""
    row = PERSONAL[method]
    assert (row["`strategy.name`"], row["`privacy`"]) == ("all", "yes")
    assert upload == "float32" or row[f"`{upload}`"] == "yes"
    privacy = PRIVACY if ROWS[name]["`privacy`"] == "yes" else None
    config = federation(name, personal={"method": method}, transport={"upload": upload}, privacy=privacy)
    goals = optima(SITES, 100)
    goals[:, 40:70] = 0
    found = train(make_strategy(config, SITES), goals, 4, upload)
    assert not found[40:70].any() and found[:40].any()
