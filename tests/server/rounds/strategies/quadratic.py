"""A federation whose answer is known: every site's loss is half the squared distance to its own optimum.

``round_of`` stores updates as a round does and returns what a strategy makes of them; ``train`` does that round after
round, with gradient descent at the sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.config.federation import FederationConfig
from common.protocol.codec import Result, Task, Vector
from common.weights.encoding import Encoding, ErrorFeedback
from server.progress.events import Event, SiteDone
from server.rounds.aggregation import StoredUpdates
from server.rounds.strategies.strategy import Strategy, StrategyState
from server.run_store.folder import RunFolder
from server.run_store.strategy_vectors import map_strategy_vector
from tests.server.fake_sites import LAYOUT, Answer, Silent, Sites, app_of, honest, run
from tests.server.rounds.test_admission import GOOD

SIZE = 300
Lie = Callable[[int, Vector], Vector]


def optima(sites: int, size: int = SIZE, spread: float = 1.0) -> np.ndarray:
    """Optima of sites, one a row, in float64: they lie around 2."""
    return 2 + spread * np.random.default_rng(5).standard_normal((sites, size))


def round_of(
    strategy: Strategy,
    updates: Sequence[Vector],
    weights: Vector,
    state: StrategyState,
    counts: Sequence[float] | None = None,
) -> tuple[Vector, StrategyState]:
    """The next model and state."""
    contents = {f"s{index}": np.asarray(update, np.float32).view(np.uint8) for index, update in enumerate(updates)}
    return _aggregate(strategy, contents, weights, state, "float32", counts)


def train(
    strategy: Strategy,
    goals: np.ndarray,
    rounds: int,
    encoding: Encoding = "float32",
    lies: Mapping[int, Lie] | None = None,
) -> Vector:
    """The model after some rounds from zero, in which site i goes half of its way to ``goals[i]``.

    ``lies`` replace what a site would send, by its number; they get the number of the round and the honest update.
    """
    weights = np.zeros(goals.shape[1], np.float32)
    state = StrategyState({name: np.zeros_like(weights) for name in strategy.state_vectors})
    feedback = [ErrorFeedback() for _ in goals]
    for number in range(1, rounds + 1):
        contents = {}
        for index, goal in enumerate(goals):
            update = (0.5 * (goal - weights)).astype(np.float32)
            if lies and index in lies:
                update = lies[index](number, update).astype(np.float32)
            pieces = feedback[index].encode(update, encoding)
            contents[f"s{index}"] = np.concatenate([data for _, data in pieces])
        weights, state = _aggregate(strategy, contents, weights, state, encoding)
    return weights


def _aggregate(
    strategy: Strategy,
    contents: Mapping[str, np.ndarray],
    weights: Vector,
    state: StrategyState,
    encoding: Encoding,
    counts: Sequence[float] | None = None,
) -> tuple[Vector, StrategyState]:
    results = {site: replace(GOOD, site=site) for site in contents}
    each = dict(zip(contents, counts or [1.0] * len(contents), strict=True))
    updates = StoredUpdates(results, each, contents, weights.size, encoding)
    steps = list(strategy.aggregate(updates, weights, state))
    vectors = {name: np.concatenate([step.state[name] for step in steps]) for name in strategy.state_vectors}
    return np.concatenate([step.weights for step in steps]), StrategyState(vectors, state.numbers)


class Killed(BaseException):
    """The process ends."""


class KilledAt(Silent):
    """Ends the process when a site's reply of this round has arrived."""

    def __init__(self, round_number: int) -> None:
        super().__init__()
        self._round = round_number

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, SiteDone) and event.round == self._round:
            raise Killed


def descends(name: str, goal: float) -> tuple[str, int, Answer]:
    """A site that goes 0.3 of its way to its optimum, the same for each weight but for a little."""
    plain = honest(name, 10, 0.0)
    goals = np.array([0, 0.1, 0.2, 0.3], np.float32) + np.float32(goal)

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, update = plain(task, weights)
        return result, None if update is None else np.float32(0.3) * (goals - weights)

    return name, 10, answer


def bits_after(config: FederationConfig, folder: RunFolder, state_vectors: Sequence[str]) -> list[bytes]:
    """The last model and the strategy's vectors of a finished run, as bytes."""
    last = config.rounds
    vectors = [folder.map_checkpoint(last, LAYOUT)]
    vectors += [map_strategy_vector(folder, last, name, LAYOUT.size) for name in state_vectors]
    return [vector.tobytes() for vector in vectors]


def run_with_kills(config: FederationConfig, sites: Sites, folder: Path, kills: Sequence[int]) -> RunFolder:
    """A run that is killed in these rounds and goes on each time."""
    made = RunFolder.create(folder)
    for number in kills:
        try:
            run(config, app_of(sites), LAYOUT, len(sites), made, KilledAt(number))
        except Killed:
            continue
        raise AssertionError(f"round {number} did not come")
    run(config, app_of(sites), LAYOUT, len(sites), made)
    return made
