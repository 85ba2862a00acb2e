"""Robust aggregation against slow versions, and with one liar of five whose lies leave the answer known."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import trim_mean

from common.errors import ConfigError
from common.protocol.codec import Result, Task, Vector
from common.weights.encoding import WINDOW, Encoding
from server.rounds.round_loop import FederationError
from server.rounds.strategies.fedavg import FedAvg
from server.rounds.strategies.registry import make_strategy
from server.rounds.strategies.robust.clipped_mean import ClippedMean
from server.rounds.strategies.robust.geometric_median import GeometricMedian, median_shares
from server.rounds.strategies.robust.median import Median
from server.rounds.strategies.robust.multi_krum import MultiKrum, closest
from server.rounds.strategies.robust.trimmed_mean import TrimmedMean, exchanges
from server.rounds.strategies.strategy import Strategy, StrategyState
from server.run_store.folder import RunFolder
from tests import tiny
from tests.server.fake_sites import LAYOUT, Answer, Sites, app_of, broken, honest, run
from tests.server.rounds.strategies.quadratic import Lie, bits_after, descends, optima, round_of, run_with_kills, train
from tests.server.rounds.strategies.test_strategy import drawn, stored

ROBUST: dict[str, Strategy] = {
    "median": Median(),
    "trimmed_mean": TrimmedMean(1),
    "multi_krum": MultiKrum(1),
    "geometric_median": GeometricMedian(),
}
ALL = {**ROBUST, "clipped_mean": ClippedMean(1.0)}


def slow(name: str, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What to add to the model, from whole vectors in float64, one a row."""
    if name == "median":
        return np.median(vectors, axis=0)
    if name == "trimmed_mean":
        return trim_mean(vectors, 1.01 / len(vectors), axis=0)
    if name == "multi_krum":
        kept = len(vectors) - 3
        scores = [sum(sorted(float(((u - v) ** 2).sum()) for v in vectors)[1 : kept + 1]) for u in vectors]
        return vectors[sorted(range(len(vectors)), key=scores.__getitem__)[:kept]].mean(axis=0)
    if name == "clipped_mean":
        norms = np.linalg.norm(vectors, axis=1)
        bound = sorted(norms)[(len(norms) - 1) // 2]
        return np.average(vectors * np.minimum(1, bound / norms)[:, None], axis=0, weights=weights)
    median = np.average(vectors, axis=0, weights=weights)
    for _ in range(300):
        far = weights / np.linalg.norm(vectors - median, axis=1)
        median = far @ vectors / far.sum()
    return median


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_windows_give_what_whole_vectors_give(name: str, encoding: Encoding) -> None:
    size = WINDOW + 77
    vectors = drawn(size, "abcdef", 1)
    vectors["c"][0] *= np.float32(3)
    vectors["f"][0] += np.float32(0.5)
    updates, decoded = stored(vectors, encoding)
    steps = list(ALL[name].aggregate(updates, np.ones(size, np.float32), StrategyState()))
    rows = np.array([several[0] for several in decoded.values()], np.float64)
    expected = 1 + slow(name, rows, np.arange(1.0, 7.0))
    np.testing.assert_allclose(np.concatenate([step.weights for step in steps]), expected, atol=1e-5)


@pytest.mark.parametrize("count", range(1, 12))
def test_the_exchanges_sort(count: int) -> None:
    """What sorts all rows of zeros and ones sorts everything (the 0-1 principle)."""
    columns = np.array(list(product([0, 1], repeat=count))).T
    for low, high in exchanges(count):
        columns[[low, high]] = np.sort(columns[[low, high]], axis=0)
    assert (np.diff(columns, axis=0) >= 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 16, 17])
def test_the_median_of_any_number_of_sites(count: int) -> None:
    vectors = np.random.default_rng(count).standard_normal((count, 50)).astype(np.float32)
    found, _ = round_of(Median(), list(vectors), np.zeros(50, np.float32), StrategyState())
    np.testing.assert_allclose(found, np.median(vectors, axis=0), rtol=1e-6)


def test_the_geometric_median_of_a_triangle_is_known() -> None:
    """Fermat's point: 120 degrees between the corners, or the corner whose angle is wider than that."""
    even = np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    wide = np.array([[0, 0], [1, 0.1], [-1, 0.1]])
    for corners, expected in ((even, even.mean(axis=0)), (wide, wide[0])):
        found, _ = round_of(GeometricMedian(), list(corners), np.zeros(2, np.float32), StrategyState())
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_geometric_median_is_what_minimises_the_sum_of_distances() -> None:
    vectors, weights = np.random.default_rng(1).standard_normal((7, 4)), np.arange(1.0, 8.0)
    squared = ((vectors[:, None] - vectors) ** 2).sum(axis=2)
    best = minimize(lambda z: weights @ np.linalg.norm(vectors - z, axis=1), np.zeros(4)).x
    np.testing.assert_allclose(median_shares(squared, weights) @ vectors, best, atol=1e-4)


def test_updates_that_are_all_equal_are_their_median() -> None:
    update = np.array([1.0, -2.0], np.float32)
    for strategy in ALL.values():
        found, _ = round_of(strategy, [update] * 5, np.zeros(2, np.float32), StrategyState())
        np.testing.assert_allclose(found, update, rtol=1e-6)


def test_krum_leaves_out_what_lies_apart() -> None:
    points = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 9.0, 9.1])
    assert closest((points[:, None] - points) ** 2, 2) == [1, 2, 3]


def random_and_long(number: int, update: Vector) -> Vector:
    noise = np.random.default_rng(number).standard_normal(update.size)
    return (10 * noise * np.linalg.norm(update) / np.linalg.norm(noise)).astype(np.float32)


LIES: dict[str, Lie] = {
    "random and ten times as long": random_and_long,
    "flipped": lambda number, update: -update,
    "flipped and growing": lambda number, update: -3 * (np.float32(1.05) ** number) * update,
}


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("lie", LIES)
def test_one_liar_of_five_moves_the_optimum_by_less_than_sites_differ(name: str, lie: str) -> None:
    goals = optima(5, spread=0.1)
    honest = goals[:4].mean(axis=0)
    found, mean = (train(strategy, goals, 40, lies={4: LIES[lie]}) for strategy in (ROBUST[name], FedAvg()))
    error, of_mean = (float(np.linalg.norm(model - honest)) / np.sqrt(honest.size) for model in (found, mean))
    assert error < 0.1
    # A flipped update of the others' length only slows the mean down.
    assert of_mean > 10 or lie == "flipped"


def test_two_of_five_that_collude_do_not_move_the_medians() -> None:
    goals = optima(5, spread=0.1)
    lies = dict.fromkeys((3, 4), lambda number, update: -2 * update)
    for strategy in (Median(), TrimmedMean(2), GeometricMedian()):
        error = train(strategy, goals, 60, lies=lies) - goals[:3].mean(axis=0)
        assert float(np.linalg.norm(error)) / np.sqrt(error.size) < 0.15
    error = train(FedAvg(), goals, 60, lies=lies) - goals[:3].mean(axis=0)
    assert float(np.linalg.norm(error)) / np.sqrt(error.size) > 1


@pytest.mark.parametrize(
    ("strategy", "least"),
    [
        ({"name": "median"}, 3),
        ({"name": "geometric_median"}, 3),
        ({"name": "trimmed_mean", "malicious_sites": 2}, 5),
        ({"name": "multi_krum"}, 5),
        ({"name": "multi_krum", "malicious_sites": 2}, 7),
    ],
)
def test_too_few_sites_are_refused_with_the_smallest_number(strategy: dict[str, object], least: int) -> None:
    config = tiny.federation(strategy=strategy)
    assert make_strategy(config, least)
    with pytest.raises(ConfigError, match=f"needs at least {least} sites .* and there are {least - 1};"):
        make_strategy(config, least - 1)
    names = [f"site{index}" for index in range(least - 1)]
    with pytest.raises(ValueError, match=f"needs at least {least} sites"):
        tiny.federation(strategy=strategy | {"min_sites": 1}, network={"address": "localhost", "sites": names})


HONEST: Sites = [descends(name, 4.0 + 0.1 * index) for index, name in enumerate("abcd")]


def flipped(name: str) -> tuple[str, int, Answer]:
    _, patients, truth = descends(name, 4.0)

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, update = truth(task, weights)
        return result, None if update is None else -update

    return name, patients, answer


@pytest.mark.parametrize("name", ["multi_krum", "trimmed_mean"])
def test_a_site_in_quarantine_is_one_of_the_malicious(tmp_path: Path, name: str) -> None:
    """With it gone, the other four are enough for what five were promised."""
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=8, strategy={"name": name})
    run(config, app_of([*HONEST, flipped("liar")]), LAYOUT, 5, folder)
    state = folder.load_state()
    assert state is not None and state.quarantine == {"liar": "opposed"} and state.accepted_rounds == 8
    np.testing.assert_allclose(folder.load_checkpoint(8, LAYOUT), 4.15 * (1 - 0.7**8), atol=0.4)


def test_a_site_that_is_only_missing_is_not(tmp_path: Path) -> None:
    def fails(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        raise ArithmeticError

    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=8, strategy={"name": "multi_krum"})
    with pytest.raises(FederationError, match="3 rounds in a row had too few usable updates"):
        run(config, app_of([*HONEST, ("e", 10, fails)]), LAYOUT, 5, folder)


@pytest.mark.parametrize("kind", ["unsent", "empty"])
def test_an_update_that_was_lost_on_the_way_is_not(tmp_path: Path, kind: str) -> None:
    """The median of the other two would be their mean, and one of them may lie; a refused update is a malicious one."""
    config = tiny.federation(rounds=2, strategy={"name": "median", "max_failed_rounds": 1})
    run(config, app_of([*HONEST[:2], ("e", 10, broken("nan", "e"))]), LAYOUT, 3, RunFolder.create(tmp_path / "refused"))
    lost = RunFolder.create(tmp_path / "lost")
    with pytest.raises(FederationError, match=r"too few usable updates.*missing-update at 1 of 3 sites, round 1"):
        run(config, app_of([*HONEST[:2], ("e", 10, broken(kind, "e"))]), LAYOUT, 3, lost)


def test_a_site_with_half_of_all_patients_does_not_hold_half_of_the_geometric_median(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    steps = {"a": (10, 1.0), "b": (10, 1.1), "liar": (20, 1.8)}
    sites: Sites = [(name, patients, honest(name, patients, step)) for name, (patients, step) in steps.items()]
    run(tiny.federation(rounds=1, strategy={"name": "geometric_median"}), app_of(sites), LAYOUT, 3, folder)
    np.testing.assert_allclose(folder.load_checkpoint(1, LAYOUT), np.full(4, 1.1), atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path: Path, name: str) -> None:
    config = tiny.federation(rounds=3, strategy={"name": name})
    sites = [*HONEST, descends("e", 4.5)]
    whole = run_with_kills(config, sites, tmp_path / "whole", [])
    pieces = run_with_kills(config, sites, tmp_path / "pieces", [2])
    assert bits_after(config, whole, ()) == bits_after(config, pieces, ())
