"""Updates that are nearly copies of what the server knew before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.protocol.codec import Result, Task, Vector, WeightLayout
from common.weights.encoding import Encoding, encode_vector
from server.rounds.aggregation import StoredUpdates
from server.rounds.judgement.copies import Copies, find_copies
from server.run_store.folder import RunFolder, RunState
from server.run_store.status import describe_run
from tests import tiny
from tests.server.fake_sites import Answer, Silent, Sites, app_of, honest, run

SIZE = 300_000
RESULT = Result("", "r1", 1, 10, 2, 1, 0.5, 0.5, {1: 0.5}, 0.0, 0.0, 0.0, 0.0)
RNG = np.random.default_rng(0)
MODEL, BEFORE, LAST = (RNG.normal(size=SIZE).astype(np.float32) for _ in range(3))


def stored(vectors: dict[str, np.ndarray], encoding: Encoding = "float32") -> StoredUpdates:
    contents = {
        site: np.concatenate([data for _, data in encode_vector(vector.astype(np.float32), encoding)])
        for site, vector in vectors.items()
    }
    size = next(iter(vectors.values())).size
    return StoredUpdates(dict.fromkeys(vectors, RESULT), dict.fromkeys(vectors, 1.0), contents, size, encoding)


def state_after(last: dict[str, np.ndarray], model: np.ndarray) -> RunState:
    """The state that a round leaves: the site's update, and the model that it was sent."""
    state = RunState(run="r1", digest="d", started="now")
    copies = find_copies(stored(last), model, state)
    return state.model_copy(update={"sketches": dict(copies.sketches), "model_sketch": copies.model})


def compared(update: np.ndarray, encoding: Encoding = "float32") -> Copies:
    return find_copies(stored({"a": update}, encoding), MODEL, state_after({"a": LAST}, BEFORE))


def noisy(update: np.ndarray, share: float) -> np.ndarray:
    """With noise of so many times its length."""
    noise = np.random.default_rng(1).normal(size=update.size)
    return update + share * np.linalg.norm(update) * noise / np.linalg.norm(noise)


@pytest.mark.parametrize(
    "update", [LAST, 3 * LAST, MODEL - BEFORE, MODEL], ids=["last", "last, longer", "last step", "model"]
)
@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_a_copy_with_some_noise_is_found(update: np.ndarray, encoding: Encoding) -> None:
    assert compared(noisy(update, 0.1), encoding).copied == {"a"}


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.5, 0.9])
def test_the_likeness_is_about_the_cosine_and_an_update_of_its_own_is_no_copy(cosine: float) -> None:
    own = np.random.default_rng(2).normal(size=SIZE)
    copies = compared(cosine * LAST + np.sqrt(1 - cosine**2) * own)
    # The highest of three: the model and its last step have a cosine of 0.7 and more to nothing else here.
    assert copies.likeness["a"] == pytest.approx(max(cosine, 0.0), abs=0.25)
    assert copies.copied == frozenset()


def test_few_weights_agree_by_chance() -> None:
    update = np.zeros(SIZE)
    update[:: SIZE // 500] = 1
    assert find_copies(stored({"a": update}), MODEL, state_after({"a": update}, BEFORE)).likeness == {}


def test_the_first_round_has_only_the_model_to_compare_with() -> None:
    copies = find_copies(stored({"a": LAST, "b": MODEL}), MODEL, RunState(run="r1", digest="d", started="now"))
    assert copies.copied == {"b"}


# Whole runs.
LAYOUT = WeightLayout({"w": (4000,)})


def training(name: str, seed: int) -> Answer:
    """A site whose updates share a direction with each other and with other sites, as those of a model that learns."""

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, _ = honest(name, 10, 1.0)(task, weights)
        own = np.random.default_rng([seed, task.round]).normal(size=4000)
        return result, (1.5 + own).astype(np.float32) if task.train else None

    return answer


def copying(lie: Callable[[Vector, Vector, int], np.ndarray]) -> Answer:
    """A site that makes its update of the models of the last two rounds."""
    truth, sent = training("liar", 9), [np.zeros(4000, np.float32)]

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, update = truth(task, weights)
        if update is not None and task.round > 1:
            update = lie(weights, sent[-1], task.round).astype(np.float32)
        sent.append(np.array(weights))
        return result, update

    return answer


def ran(folder: Path, third: Answer) -> tuple[RunFolder, RunState, list[str]]:
    made, observer = RunFolder.create(folder), Silent()
    sites: Sites = [("a", 10, training("a", 1)), ("b", 10, training("b", 2)), ("liar", 10, third)]
    run(tiny.federation(rounds=6), app_of(sites), LAYOUT, 3, made, observer)
    made.write_text("federation.yaml", "name: tiny\nrounds: 6\n")
    state = made.load_state()
    assert state is not None
    return made, state, [text for text in observer.messages if text.startswith("ALARM")]


def test_a_free_rider_is_named_in_an_alarm_and_status(tmp_path: Path) -> None:
    folder, state, told = ran(tmp_path / "run", copying(lambda now, before, number: noisy(now - before, 0.05)))
    assert list(state.alarms) == ["copy liar"] and state.quarantine == {}
    assert len(told) == 1 and "the update of liar was nearly a copy of its last one" in told[0]
    assert "the site does not train, ask it why" in describe_run(folder).as_text()
    likeness = [line["sites"]["liar"]["likeness"] for line in folder.read_rounds()]
    assert likeness[0] < 0.9 and min(likeness[1:6]) > 0.98 and likeness[6] is None


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (lambda now, before, number: 0 * now, "the update of liar was zero: it sent back the model that it was sent"),
        (lambda now, before, number: np.full(4000, 1.5), "the update of liar was a copy of an earlier update"),
    ],
)
def test_zeros_and_exact_copies_are_an_alarm_at_once(
    tmp_path: Path, lie: Callable[[Vector, Vector, int], np.ndarray], told: str
) -> None:
    _, state, texts = ran(tmp_path / "run", copying(lie))
    assert told in texts[0]
    assert list(state.quarantine) == ["liar"] and list(state.alarms) == ["quarantine liar"]


def test_sites_that_train_raise_no_alarm(tmp_path: Path) -> None:
    _, state, told = ran(tmp_path / "run", training("liar", 9))
    assert state.alarms == {} and told == []
