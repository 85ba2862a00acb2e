"""SCAFFOLD and FedDyn reach the common optimum of sites that differ, where FedAvg with several local steps does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.runner.gradient_memory import GradientMemory, memory_of
from common.config.federation import FederationConfig
from common.protocol.codec import Result, Task, Vector
from server.rounds.strategies.registry import make_strategy
from server.rounds.strategies.strategy import StrategyState
from tests import tiny
from tests.server.fake_sites import Answer, Sites, honest
from tests.server.rounds.strategies.federated_descent import SIZE, Descent
from tests.server.rounds.strategies.quadratic import bits_after, round_of, run_with_kills

CORRECTING = ["scaffold", "feddyn"]
FAR = 0.15
"""FedAvg stays at least this far from the optimum, as the root of the mean square over weights."""
NEAR = 0.005


def federation(name: str, rounds: int = 25, upload: str = "float32", **training: object) -> FederationConfig:
    alpha = {"feddyn_alpha": 2.0} if name == "feddyn" else {}
    defaults = {"optimizer": "sgd", "learning_rate": 0.08, "local_steps": 10, "poly_power": 0.0, "gradient_clip": 0.0}
    return tiny.federation(
        rounds,
        strategy={"name": name, "weights": "uniform"} | alpha,
        transport={"upload": upload},
        training=defaults | {"momentum": 0.0} | training,
    )


def descent(config: FederationConfig, folder: Path, sites: int = 3) -> Descent:
    random = np.random.default_rng(3)
    return Descent(config, folder, random.uniform(1, 8, (sites, SIZE)), 2 + random.standard_normal((sites, SIZE)))


def error(found: Vector, optimum: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - optimum) ** 2)))


@pytest.mark.parametrize("name", CORRECTING)
@pytest.mark.parametrize("training", [{}, {"momentum": 0.6, "learning_rate": 0.03}, {"gradient_clip": 20.0}])
def test_the_common_optimum_is_reached(tmp_path: Path, name: str, training: dict[str, object]) -> None:
    corrected = descent(federation(name, **training), tmp_path / name)
    assert error(corrected.trained()[0], corrected.optimum) < NEAR
    plain = descent(federation("fedavg", **training), tmp_path / "fedavg")
    assert error(plain.trained()[0], plain.optimum) > FAR


@pytest.mark.parametrize("name", CORRECTING)
@pytest.mark.parametrize("upload", ["bfloat16", "int8"])
def test_it_is_reached_with_lossy_uploads(tmp_path: Path, name: str, upload: str) -> None:
    found = descent(federation(name, upload=upload), tmp_path)
    assert error(found.trained()[0], found.optimum) < NEAR


@pytest.mark.parametrize("name", CORRECTING)
def test_it_is_reached_although_sites_miss_rounds_and_rounds_do_not_count(tmp_path: Path, name: str) -> None:
    absent = np.random.default_rng(1).random((81, 3)) < 0.3
    found = descent(federation(name, rounds=80), tmp_path)
    weights, _ = found.trained(lambda number, site: not absent[number, site], lambda number: number % 5 > 0)
    assert error(weights, found.optimum) < NEAR


@pytest.mark.parametrize("name", CORRECTING)
def test_it_is_reached_although_a_site_is_always_scaled_down(tmp_path: Path, name: str) -> None:
    """What sites remember is not scaled, and neither may be what the server knows of it."""
    found = descent(federation(name, rounds=50), tmp_path)
    found.scales = {"s1": 0.5}
    assert error(found.trained()[0], found.optimum) < NEAR


class Pushed(Descent):
    """The last site sends the same direction in every round, ``length`` times as long as the median of the others'."""

    length = 1.0
    norms: Sequence[float] = ()

    def local_update(self, site: int, number: int, start: Vector, correction: Vector | None) -> Vector:
        if site < len(self.optima) - 1:
            moved = super().local_update(site, number, start, correction)
            self.norms = [*(self.norms if site else []), float(np.linalg.norm(moved))]
            return moved
        median = sorted(self.norms)[len(self.norms) // 2]
        return np.full(SIZE, self.length * median / SIZE**0.5, np.float32)


@pytest.mark.parametrize("name", CORRECTING)
@pytest.mark.parametrize("length", [1.0, 3.0, 9.0])
def test_a_liar_among_five_does_not_move_the_model_without_end(tmp_path: Path, name: str, length: float) -> None:
    """Remembered at nine times the others' length, it would be 8e10 away with FedDyn, and 7 with SCAFFOLD."""
    found = []
    for rounds in (20, 40):
        config = federation(name, rounds=rounds)
        honest_sites = descent(config, tmp_path, 5)
        pushed = Pushed(config, tmp_path / str(rounds), honest_sites.curvatures, honest_sites.optima)
        pushed.length, pushed.scales = length, {"s4": 1 / length} if length > 2 else {}
        found.append(error(pushed.trained()[0], pushed.optimum))
    assert found[1] < 1.1 * found[0] and found[1] < (0.3 if length == 9.0 else 7.0)


def test_it_is_reached_with_different_numbers_of_steps(tmp_path: Path) -> None:
    found = descent(federation("scaffold", local_epochs=1, batch_size=1), tmp_path)
    found.scans = [3, 10, 6]
    assert error(found.trained()[0], found.optimum) < NEAR


@pytest.mark.parametrize("name", CORRECTING)
def test_the_number_of_sites_is_that_of_the_first_round(name: str) -> None:
    """Sites may be revoked while a run is interrupted: the mean stays one over the same sites."""
    config = federation(name, rounds=2)
    state = StrategyState({key: np.zeros(4, np.float32) for key in make_strategy(config, 4).state_vectors})
    found = []
    for sites in (4, 3):
        _, state = round_of(make_strategy(config, sites), [np.ones(4, np.float32)], np.zeros(4, np.float32), state)
        found.append(next(iter(state.vectors.values())))
    assert state.numbers == {"sites": 4}
    length = 0.32 if name == "scaffold" else None
    first = np.full(4, -1 / length / 4 if length else 1 / 4)
    second = first + (-1 / length - first) / 4 if length else first + 1 / 4
    np.testing.assert_allclose(found, [first, second], rtol=1e-5)


def test_the_control_variate_of_the_server_is_the_mean_of_the_sites(tmp_path: Path) -> None:
    """Also of a site that was absent at the end; and each is the mean gradient of the site's last steps."""
    config = federation("scaffold", rounds=5)
    found = descent(config, tmp_path)
    _, state = found.trained(lambda number, site: number < 4 or site != 2, lambda number: number != 3)
    kept = [_kept(config, tmp_path, site, 5 if site != 2 else 2) for site in range(3)]
    np.testing.assert_allclose(state.vectors["control"], np.mean(kept, axis=0), atol=1e-5)
    assert np.abs(kept).max() > 0.1


def test_an_update_that_is_not_remembered_is_so_at_the_server_and_at_the_site(tmp_path: Path) -> None:
    """One of three sites is far too long in each round: it goes on from its beginning, the others from the last."""
    config = federation("scaffold", rounds=5)
    found = descent(config, tmp_path)
    found.scales = {"s1": 0.4}
    _, state = found.trained()
    kept = [_kept(config, tmp_path, site, 0 if site == 1 else 5) for site in range(3)]
    assert not kept[1].any() and kept[0].any()
    np.testing.assert_allclose(state.vectors["control"], np.mean(kept, axis=0), atol=1e-5)


@pytest.mark.parametrize("name", CORRECTING)
def test_a_run_remembers_no_update_that_is_far_longer_than_the_others(tmp_path: Path, name: str) -> None:
    config = federation(name, rounds=2, learning_rate=0.02)
    goals = dict(zip("abcd", (1.0, 1.1, 1.2, 4.0), strict=True))
    sites = [remembers(config, tmp_path / "sites", each, goal) for each, goal in goals.items()]
    state = run_with_kills(config, sites, tmp_path / "run", []).load_state()
    assert state is not None and state.counted == dict.fromkeys("abc", 2)


def _kept(config: FederationConfig, folder: Path, site: int, counted: int) -> Vector:
    memory = memory_of(config, folder / str(site), str(site))
    assert memory is not None
    task = Task("r1", "d", 6, 6, True, "m", counted_last=counted)
    return -memory.correction(task, SIZE, [])


def test_a_control_variate_is_the_mean_gradient_where_that_is_the_same_everywhere(tmp_path: Path) -> None:
    """On a slope, whatever the schedule and the momentum."""
    config = federation("scaffold", rounds=3, momentum=0.7, poly_power=0.9)
    slope = Descent(config, tmp_path, np.full((2, SIZE), 1e-6), np.full((2, SIZE), 3e6))
    slope.trained()
    np.testing.assert_allclose(_kept(config, tmp_path, 1, 3), np.full(SIZE, -3.0), rtol=1e-4)


def remembers(config: FederationConfig, folder: Path, name: str, goal: float) -> tuple[str, int, Answer]:
    """A site that goes 0.3 of its way to its optimum, with its algorithm's correction."""
    plain, curve = honest(name, 10, 0.0), np.array([0.1, 0.3, 0.2, 0.4], np.float32)
    memory = memory_of(config, folder / name, name)
    assert isinstance(memory, GradientMemory)

    def answer(task: Task, vectors: Vector) -> tuple[Result, Vector | None]:
        result, update = plain(task, vectors[:4])
        if update is None:
            return result, None
        result = replace(result, steps=config.training.local_steps)
        correction = memory.correction(task, 4, list(vectors[4:].reshape(-1, 4)))
        update = curve * (np.float32(goal) - vectors[:4]) - np.float32(0.1) * correction
        memory.remember(task, config.training.local_steps, correction, update)
        return result, update

    return name, 10, answer


@pytest.mark.parametrize("name", CORRECTING)
def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path: Path, name: str) -> None:
    config = federation(name, rounds=6, learning_rate=0.02)

    def sites(folder: str) -> Sites:
        return [
            remembers(config, tmp_path / folder, each, goal) for each, goal in zip("abc", (1.0, 1.5, 2.0), strict=True)
        ]

    vectors = make_strategy(config, 3).state_vectors
    whole = run_with_kills(config, sites("of whole"), tmp_path / "whole", [])
    pieces = run_with_kills(config, sites("of pieces"), tmp_path / "pieces", [1, 3, 6])
    assert bits_after(config, whole, vectors) == bits_after(config, pieces, vectors)
    assert any(np.frombuffer(bits_after(config, whole, vectors)[1], np.float32))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"strategy": {"name": "feddyn"}, "privacy": {"epsilon": 8}}, "feddyn does not work with privacy"),
        ({"strategy": {"name": "scaffold"}, "privacy": {"epsilon": 8}}, "scaffold does not work with privacy"),
        ({"strategy": {"name": "scaffold"}, "training": {"optimizer": "adamw"}}, r"needs training\.optimizer sgd"),
        (
            {"strategy": {"name": "scaffold"}, "transport": {"download": "bfloat16"}},
            r"needs transport\.download",
        ),
        ({"strategy": {"name": "scaffold", "feddyn_alpha": 1}}, "feddyn_alpha is an option of feddyn"),
        ({"strategy": {"name": "feddyn", "feddyn_alpha": 0}}, "greater than 0"),
    ],
)
def test_what_they_do_not_work_with_is_refused(values: dict[str, dict[str, object]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny.federation(**{"training": {"optimizer": "sgd"}} | values)
