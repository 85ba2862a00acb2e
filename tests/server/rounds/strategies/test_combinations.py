"""Every cell of the table in deploy/docs/algorithms.md: what it says can be combined can, and the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from common.config.algorithms import OPTIONS, Algorithm
from common.config.federation import FederationConfig
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
PRIVACY = {"epsilon": 8, "delta": 1e-5}
SITES = 7


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table() -> dict[str, dict[str, str]]:
    """The table's rows by algorithm."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if cells(line) == COLUMNS)
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        values = cells(line)
        rows[values[0].strip("`")] = dict(zip(COLUMNS, values, strict=True))
    return rows


ROWS = table()


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
