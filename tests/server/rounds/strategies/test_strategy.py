"""The contract of a strategy, tested with one that uses all of it: two vectors an update, and state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config.federation import FederationConfig
from common.errors import ConfigError, DamagedFileError
from common.protocol.codec import Result, Task, Vector
from common.weights.encoding import VALUES_PER_PIECE, WINDOW, Encoding, encode_vector, vector_of
from server.rounds.aggregation import StoredUpdates
from server.rounds.strategies.fedavg import FedAvg
from server.rounds.strategies.registry import STRATEGIES, make_strategy
from server.rounds.strategies.strategy import Next, StrategyState, Updates, Window
from server.rounds.strategies.weighted_mean import WeightedMean
from server.run_store.folder import RunFolder
from server.run_store.strategy_vectors import map_strategy_vector
from tests import tiny
from tests.server.fake_sites import LAYOUT, Answer, app_of, honest, run
from tests.server.rounds.strategies.quadratic import Killed, KilledAt
from tests.server.rounds.test_admission import GOOD

ENCODINGS: list[Encoding] = ["float32", "bfloat16", "int8"]


class Momentum:
    """Averaged updates and averaged second vectors go into a momentum, which moves the model."""

    update_vectors = 2
    state_vectors = ("momentum",)

    def prepare(self, config: FederationConfig, sites: int) -> None:
        if config.transport.upload == "int8":
            raise ConfigError("transport.upload: this strategy needs float32 or bfloat16")

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        state.numbers["rounds"] = state.numbers.get("rounds", 0) + 1

        def step(window: Window) -> Next:
            means = [WeightedMean(window.size) for _ in range(2)]
            for site, vectors in window.updates():
                for mean, values in zip(means, vectors, strict=True):
                    mean.add(values, updates.weights[site])
            update, second = (mean.mean() for mean in means)
            momentum = np.float32(0.5) * state.vectors["momentum"][window.where] + update + second
            return Next(weights[window.where] + momentum, {"momentum": momentum})

        return updates.map(step)


def stored(
    vectors: Mapping[str, list[Vector]], encoding: Encoding, scales: Mapping[str, float] | None = None
) -> tuple[StoredUpdates, dict[str, list[Vector]]]:
    """Updates as they lie in the store, and what they hold after encoding."""
    results = {site: replace(GOOD, site=site, examples=index + 1) for index, site in enumerate(vectors)}
    parts = {
        site: [np.concatenate([data for _, data in encode_vector(vector, encoding)]) for vector in several]
        for site, several in vectors.items()
    }
    size = len(next(iter(vectors.values()))[0])
    decoded = {site: [vector_of(part, size, encoding) for part in several] for site, several in parts.items()}
    contents = {site: np.concatenate(several) for site, several in parts.items()}
    weights = {site: float(result.examples) for site, result in results.items()}
    return StoredUpdates(results, weights, contents, size, encoding, scales), decoded


def drawn(size: int, sites: str, vectors: int) -> dict[str, list[Vector]]:
    random = np.random.default_rng(0)
    return {site: [random.standard_normal(size, np.float32) for _ in range(vectors)] for site in sites}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pieces", [0, 1])
def test_windows_give_what_whole_vectors_give(encoding: Encoding, pieces: int) -> None:
    size = pieces * VALUES_PER_PIECE[encoding] + WINDOW + 77
    updates, decoded = stored(drawn(size, "abc", 2), encoding)
    weights, before = np.ones(size, np.float32), np.full(size, 2, np.float32)
    steps = list(Momentum().aggregate(updates, weights, StrategyState({"momentum": before})))
    means = [np.average([decoded[site][index] for site in "abc"], axis=0, weights=[1, 2, 3]) for index in range(2)]
    expected = 0.5 * before + means[0] + means[1]
    np.testing.assert_allclose(np.concatenate([step.state["momentum"] for step in steps]), expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([step.weights for step in steps]), 1 + expected, atol=1e-5)


def test_fedavg_adds_the_mean_weighted_by_patients() -> None:
    updates, decoded = stored(drawn(WINDOW + 5, "ab", 1), "float32")
    weights = np.full(WINDOW + 5, 3, np.float32)
    steps = list(FedAvg().aggregate(updates, weights, StrategyState()))
    mean = (decoded["a"][0].astype(np.float64) + 2 * decoded["b"][0].astype(np.float64)) / 3
    np.testing.assert_array_equal(np.concatenate([step.weights for step in steps]), weights + mean.astype(np.float32))
    assert not steps[0].state


def test_what_a_strategy_does_not_work_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "fedavg", Momentum)
    make_strategy(tiny.federation(), 2)
    with pytest.raises(ConfigError, match=r"transport\.upload"):
        make_strategy(tiny.federation(transport={"upload": "int8"}), 2)


def two_vectors(name: str) -> Answer:
    """A site that sends a second vector behind its update, as one with a control variate does."""
    plain = honest(name, 10, 0.0)

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, update = plain(task, weights)
        if update is None:
            return result, None
        return result, np.concatenate([0.1 - 0.3 * weights, np.full(4, 0.01 * task.round, np.float32)])

    return answer


SITES = [(name, 10, two_vectors(name)) for name in "ab"]


def states(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in (folder.path / "checkpoints").glob("strategy_*"))


@pytest.fixture
def with_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "fedavg", Momentum)


@pytest.mark.usefixtures("with_momentum")
def test_state_survives_a_crash_to_the_bit(tmp_path: Path) -> None:
    config = tiny.federation(rounds=6)
    whole, pieces = (RunFolder.create(tmp_path / name) for name in ("whole", "pieces"))
    run(config, app_of(SITES), LAYOUT, 2, whole)
    for number in (1, 3, 6):
        with pytest.raises(Killed):
            run(config, app_of(SITES), LAYOUT, 2, pieces, KilledAt(number))
    run(config, app_of(SITES), LAYOUT, 2, pieces)
    weights, momentum = np.zeros(4, np.float32), np.zeros(4, np.float32)
    for number in range(1, 7):
        update, second = (np.float32(0.1) - np.float32(0.3) * weights), np.full(4, 0.01 * number, np.float32)
        momentum = np.float32(0.5) * momentum + update + second
        weights = weights + momentum
    for folder in (whole, pieces):
        state = folder.load_state()
        assert state is not None and (state.strategy_round, state.strategy_numbers) == (6, {"rounds": 6})
        assert states(folder) == ["strategy_0006_momentum.f32"]
        np.testing.assert_allclose(folder.map_checkpoint(6, LAYOUT), weights, rtol=1e-6)
        np.testing.assert_allclose(map_strategy_vector(folder, 6, "momentum", 4), momentum, rtol=1e-6)
    for read in (
        lambda folder: folder.map_checkpoint(6, LAYOUT),
        lambda folder: map_strategy_vector(folder, 6, "momentum", 4),
    ):
        np.testing.assert_array_equal(read(whole).view(np.uint32), read(pieces).view(np.uint32))


@pytest.mark.usefixtures("with_momentum")
def test_a_round_without_a_quorum_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    def absent_in_round_2(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        if task.round == 2:
            raise ArithmeticError
        return two_vectors("b")(task, weights)

    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=2, strategy={"min_sites": 2})
    run(config, app_of([SITES[0], ("b", 10, absent_in_round_2)]), LAYOUT, 2, folder)
    state = folder.load_state()
    assert state is not None and (state.round, state.strategy_round, state.strategy_numbers) == (2, 1, {"rounds": 1})
    assert states(folder) == ["strategy_0001_momentum.f32"]


@pytest.mark.usefixtures("with_momentum")
def test_an_update_without_the_second_vector_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    run(tiny.federation(rounds=1), app_of([*SITES, ("c", 10, honest("c", 10, 1.0))]), LAYOUT, 3, folder)
    sites = folder.read_rounds()[0]["sites"]
    assert {name: line["status"] for name, line in sites.items()} == {"a": "ok", "b": "ok", "c": "refused"}


@pytest.mark.usefixtures("with_momentum")
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"1234")])
def test_a_damaged_state_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(Killed):
        run(tiny.federation(rounds=3), app_of(SITES), LAYOUT, 2, folder, KilledAt(2))
    damage(folder.strategy_vector_path(1, "momentum"))
    with pytest.raises(DamagedFileError, match=r"strategy_0001_momentum\.f32: (is missing|was changed or cut)"):
        run(tiny.federation(rounds=3), app_of(SITES), LAYOUT, 2, folder)
