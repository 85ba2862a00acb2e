"""FedAvgM, FedAdam and FedYogi against slow versions in float64, written from the papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from server.rounds.strategies.fedadam import FedAdam
from server.rounds.strategies.fedavgm import FedAvgM
from server.rounds.strategies.fedyogi import FedYogi
from server.rounds.strategies.registry import make_strategy
from server.rounds.strategies.strategy import Strategy, StrategyState
from tests import tiny
from tests.server.fake_sites import Sites
from tests.server.rounds.strategies.quadratic import bits_after, descends, optima, round_of, run_with_kills, train

Model = np.ndarray
Slow = Callable[[Model, list[Model]], Model]
RATE, BETA_1, BETA_2, TAU = 0.1, 0.8, 0.95, 0.01


def slow_momentum(weights: Model, means: list[Model]) -> Model:
    """All past means, each weighted by how often the momentum has halved it since."""
    total = sum(0.5 ** (len(means) - 1 - index) * mean for index, mean in enumerate(means))
    return weights + 0.7 * np.asarray(total)


def slow_adam(weights: Model, means: list[Model]) -> Model:
    count = len(means)
    first = sum((1 - BETA_1) * BETA_1 ** (count - 1 - index) * mean for index, mean in enumerate(means))
    second = sum((1 - BETA_2) * BETA_2 ** (count - 1 - index) * mean**2 for index, mean in enumerate(means))
    return weights + RATE * np.asarray(first) / (np.sqrt(second + BETA_2**count * TAU**2) + TAU)


def slow_yogi(weights: Model, means: list[Model]) -> Model:
    moved = np.empty_like(weights)
    for place in range(weights.size):
        first, second = 0.0, TAU**2
        for mean in means:
            square = mean[place] ** 2
            first = BETA_1 * first + (1 - BETA_1) * mean[place]
            if second > square:
                second -= (1 - BETA_2) * square
            elif second < square:
                second += (1 - BETA_2) * square
        moved[place] = weights[place] + RATE * first / (np.sqrt(second) + TAU)
    return moved


CASES: dict[str, tuple[Strategy, Slow]] = {
    "fedavgm": (FedAvgM(0.7, 0.5), slow_momentum),
    "fedadam": (FedAdam(RATE, BETA_1, BETA_2, TAU), slow_adam),
    "fedyogi": (FedYogi(RATE, BETA_1, BETA_2, TAU), slow_yogi),
}


@pytest.mark.parametrize("name", CASES)
def test_rounds_are_those_of_the_slow_version(name: str) -> None:
    strategy, slow = CASES[name]
    goals, counts = optima(3, 40), [1.0, 2.0, 5.0]
    weights = np.zeros(40, np.float32)
    state = StrategyState({key: np.zeros(40, np.float32) for key in strategy.state_vectors})
    exact, means = np.zeros(40), list[Model]()
    for _ in range(12):
        updates = [(0.5 * (goal - weights)).astype(np.float32) for goal in goals]
        weights, state = round_of(strategy, updates, weights, state, counts)
        means.append(np.average(0.5 * (goals - exact), axis=0, weights=counts))
        exact = slow(exact, means)
    np.testing.assert_allclose(weights, exact, atol=2e-5)
    assert np.abs(exact).max() > 0.5


def test_momentum_follows_the_closed_form_of_the_heavy_ball() -> None:
    """On a quadratic, the distance to the optimum is multiplied by the same matrix every round."""
    goals = optima(4)
    step = np.array([[1 - 0.7 * 0.5, 0.7 * 0.5], [-0.5, 0.5]])
    distance, _ = np.linalg.matrix_power(step, 9) @ np.array([1.0, 0.0])
    optimum = goals.mean(axis=0)
    np.testing.assert_allclose(train(FedAvgM(0.7, 0.5), goals, 9), optimum * (1 - distance), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_common_optimum_is_reached(name: str) -> None:
    goals = optima(3, 50)
    found = train(CASES[name][0], goals, 200)
    np.testing.assert_allclose(found, goals.mean(axis=0), atol=0.02)


def test_weights_that_no_site_changes_stay_to_the_bit() -> None:
    weights = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    for strategy, _ in CASES.values():
        state = StrategyState({key: np.zeros(30, np.float32) for key in strategy.state_vectors})
        moved, _ = round_of(strategy, [np.zeros(30, np.float32)] * 2, weights, state)
        np.testing.assert_array_equal(moved, weights)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path: Path, name: str) -> None:
    config = tiny.federation(rounds=6, strategy={"name": name, "server_learning_rate": 0.2})
    sites: Sites = [descends("a", 1.0), descends("b", 1.5), descends("c", 2.0)]
    vectors = make_strategy(config, 3).state_vectors
    whole = run_with_kills(config, sites, tmp_path / "whole", [])
    pieces = run_with_kills(config, sites, tmp_path / "pieces", [1, 3, 6])
    assert bits_after(config, whole, vectors) == bits_after(config, pieces, vectors)
    assert len(vectors) == len(list((whole.path / "checkpoints").glob("strategy_0006_*.f32")))
