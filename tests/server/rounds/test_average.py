"""The mean of the last rounds' models: what it holds, who scores it, what it needs, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from server.run_store.folder import RunFolder, RunState
from tests import tiny
from tests.server.fake_sites import LAYOUT, Answer, app_of, broken, honest, run


def closest_to(best: float) -> Answer:
    """A site whose weights grow by 1 a round, and whose Dice is the higher the closer they are to ``best``."""
    return honest("a", 30, 1.0, lambda weights: 1 - abs(float(weights[0]) - best) / 10)


def finished(folder: RunFolder) -> RunState:
    state = folder.load_state()
    assert state is not None
    assert state.finished
    return state


@pytest.mark.parametrize(("rounds", "expected"), [(1, 5.0), (2, 4.5), (3, 4.0), (5, 3.0)])
def test_the_last_model_is_the_mean_of_the_last_rounds(tmp_path: Path, rounds: int, expected: float) -> None:
    """Weights are 1, 2, 3, 4, 5 after the rounds. The sites score the mean, so it can be released."""
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=5, strategy={"average_rounds": rounds})
    run(config, app_of([("a", 30, closest_to(expected))]), LAYOUT, 1, folder)
    np.testing.assert_allclose(folder.load_checkpoint(5, LAYOUT), np.full(4, expected), rtol=1e-6)
    state = finished(folder)
    assert state.final_mean_dice == pytest.approx(1.0)
    # A round before may have had the same weights: the earliest of equals is released.
    assert state.best_round == (5 if expected % 1 else int(expected))


def test_a_mean_that_scores_worse_than_a_round_before_is_not_released(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=5, strategy={"average_rounds": 5})
    run(config, app_of([("a", 30, closest_to(4.0))]), LAYOUT, 1, folder)
    assert finished(folder).best_round == 4
    np.testing.assert_allclose(folder.load_checkpoint(4, LAYOUT), np.full(4, 4.0), rtol=1e-6)


def test_models_that_will_be_averaged_are_kept_until_then(tmp_path: Path) -> None:
    """One site of two is always needed; the other ends the run early by failing three times."""
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=9, strategy={"average_rounds": 3, "max_failed_rounds": 3, "min_sites": 2})
    with pytest.raises(Exception, match="3 rounds in a row"):
        run(config, app_of([("a", 30, closest_to(1.0)), ("bad", 10, broken("nan"))]), LAYOUT, 2, folder)
    state = folder.load_state()
    assert state is not None
    assert state.recent == [2, 3]
    assert {path.name for path in (folder.path / "checkpoints").glob("round_*")} >= {
        "round_0002.safetensors",
        "round_0003.safetensors",
    }


def test_a_run_that_stops_early_ends_with_the_mean_too(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    stop = {"patience": 2, "min_delta": 0.01}
    config = tiny.federation(rounds=50, early_stop=stop, strategy={"average_rounds": 3})
    run(config, app_of([("a", 30, closest_to(1.0))]), LAYOUT, 1, folder)
    state = finished(folder)
    assert state.stopped_early
    np.testing.assert_allclose(folder.load_checkpoint(state.round, LAYOUT), np.full(4, state.round - 1), rtol=1e-6)
    assert sorted(path.name for path in (folder.path / "checkpoints").glob("round_*")) == sorted(
        {f"round_{number:04d}.safetensors" for number in (1, state.round)}
    )


@pytest.mark.parametrize(("value", "words"), [(4, "only 3 rounds; lower it"), (0, "greater than or equal to 1")])
def test_what_cannot_be_averaged_is_refused(value: int, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny.federation(rounds=3, strategy={"average_rounds": value})


def test_without_an_average_the_file_reads_as_before() -> None:
    """A new key would change the digest of every approved federation."""
    assert "average_rounds" not in tiny.federation(rounds=3).resolved()
    assert "average_rounds: 2" in tiny.federation(rounds=3, strategy={"average_rounds": 2}).resolved()
