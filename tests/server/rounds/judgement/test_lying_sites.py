"""Whole runs with a site that lies: what reaches the model, who is quarantined, and what people are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.protocol.codec import Result, Task, Vector
from server.rounds.round_loop import FederationError
from server.run_store.folder import RunFolder, RunState
from server.run_store.status import describe_run
from tests import tiny
from tests.server.fake_sites import LAYOUT, Answer, Silent, Sites, app_of, honest, run, site

HONEST: Sites = [site("a", 10, 1.0), site("b", 10, 1.2)]


def liar(lie: Callable[[int, Vector], Vector], patients: int = 10) -> tuple[str, int, Answer]:
    """A site that changes its update in a round."""
    truth = honest("liar", patients, 1.1)

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, update = truth(task, weights)
        return result, None if update is None else lie(task.round, update).astype(np.float32)

    return "liar", patients, answer


def ran(folder: Path, sites: Sites, rounds: int = 8, observer: Silent | None = None) -> tuple[RunFolder, RunState]:
    made = RunFolder.create(folder)
    run(tiny.federation(rounds=rounds), app_of(sites), LAYOUT, len(sites), made, observer)
    state = made.load_state()
    assert state is not None
    return made, state


@pytest.mark.parametrize(
    ("lie", "last"),
    [
        (lambda number, update: -update, 3),
        (lambda number, update: -4.5 * update, 3),
        (lambda number, update: -(1.05**number) * update, 3),
        (lambda number, update: -update if number % 2 else update, 5),
    ],
    ids=["flipped", "flipped and longer", "flipped and growing", "alternating"],
)
def test_one_of_three_that_pushes_against_the_others_is_quarantined(
    tmp_path: Path, lie: Callable[[int, Vector], Vector], last: int
) -> None:
    observer = Silent()
    folder, state = ran(tmp_path / "run", [*HONEST, liar(lie)], observer=observer)
    assert state.quarantine == {"liar": "opposed"}
    rounds = folder.read_rounds()
    assert [line["round"] for line in rounds if "liar" in line["sites"]] == list(range(1, last + 1))
    assert (rounds[last - 1]["sites"]["liar"]["status"], rounds[0]["sites"]["liar"]["status"]) == ("refused", "ok")
    assert rounds[0]["sites"]["liar"]["cosine"] == pytest.approx(-1)
    assert any("ALARM: liar is in quarantine: its updates pushed against" in text for text in observer.messages)
    # Three rounds at a third of the speed, then five without it.
    assert folder.load_checkpoint(8, LAYOUT).min() > 5 * 1.1


def test_a_million_patients_count_as_those_of_the_others_and_a_person_is_told(tmp_path: Path) -> None:
    """In every round the liar trains honestly on what it has, and weighs no more than one of the others."""
    observer = Silent()
    sites = [*HONEST, liar(lambda number, update: update * 1.1, 10**6)]
    folder, state = ran(tmp_path / "run", sites, rounds=2, observer=observer)
    expected = 2 * (1.0 + 1.2 + 1.21) / 3
    np.testing.assert_allclose(folder.load_checkpoint(2, LAYOUT), np.full(4, expected), rtol=1e-5)
    told = "liar declares 1,000,000 training patients, far more than the other sites (median 10)"
    assert [text.startswith(f"ALARM: {told}") for text in observer.messages].count(True) == 1
    assert told in describe_run(folder_with_name(folder)).as_text()
    assert state.quarantine == {}


def test_one_that_is_often_scaled_down_is_for_a_person_to_see(tmp_path: Path) -> None:
    """It is too long in every other round; nobody is quarantined for that, and two such rounds say nothing."""
    observer = Silent()
    lie = liar(lambda number, update: update * (4 if number % 2 else 1))
    _, state = ran(tmp_path / "run", [*HONEST, lie], observer=observer)
    assert state.quarantine == {} and list(state.alarms) == ["watch liar"]
    assert [text for text in observer.messages if "in 3 of its last 5 rounds, replies of liar were" in text]
    _, state = ran(tmp_path / "short", [*HONEST, lie], rounds=4)
    assert state.alarms == {}


def test_a_longer_update_counts_as_long_as_the_others(tmp_path: Path) -> None:
    folder, _ = ran(tmp_path / "run", [*HONEST, liar(lambda number, update: 4 * update)], rounds=1)
    np.testing.assert_allclose(folder.load_checkpoint(1, LAYOUT), np.full(4, (1.0 + 1.2 + 1.2) / 3), rtol=1e-5)
    line = folder.read_rounds()[0]["sites"]["liar"]
    assert (line["length"], line["scale"]) == (pytest.approx(8.8), pytest.approx(1.2 / 4.4))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda number, update: np.zeros(4), "zero-update"),
        (lambda number, update: np.full(4, 1.1), "repeated-update"),
    ],
)
def test_zeros_and_copies_count_as_no_work(tmp_path: Path, lie: Callable[[int, Vector], Vector], reason: str) -> None:
    folder, state = ran(tmp_path / "run", [*HONEST, liar(lie)])
    found = [line["sites"]["liar"]["reason"] for line in folder.read_rounds() if "liar" in line["sites"]]
    assert set(found) - {None} == {reason}
    assert state.quarantine == {"liar": reason}
    alone, _ = ran(tmp_path / "alone", HONEST)
    first = reason == "repeated-update"
    difference = folder.load_checkpoint(8, LAYOUT) - alone.load_checkpoint(8, LAYOUT)
    assert np.abs(difference).max() < (0.1 if first else 1e-6)


def test_of_two_sites_nobody_is_named_alone(tmp_path: Path) -> None:
    observer = Silent()
    _, state = ran(tmp_path / "run", [HONEST[0], liar(lambda number, update: -2 * update)], observer=observer)
    assert state.quarantine == {}
    texts = [text for text in observer.messages if text.startswith("ALARM")]
    assert any("a and liar disagree" in text for text in texts)
    assert any("liar is much longer than that of a" in text for text in texts)


def test_what_a_site_did_is_remembered_after_a_crash(tmp_path: Path) -> None:
    """The run is killed in round 3, when the liar has opposed the others twice."""
    sites = [*HONEST, liar(lambda number, update: -update)]

    class Killed(BaseException):
        pass

    def dies(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        if task.round == 3:
            raise Killed
        return HONEST[1][2](task, weights)

    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(Killed):
        run(tiny.federation(rounds=8), app_of([HONEST[0], ("b", 10, dies), sites[2]]), LAYOUT, 3, folder)
    run(tiny.federation(rounds=8), app_of(sites), LAYOUT, 3, folder)
    whole, _ = ran(tmp_path / "whole", sites)
    assert [list(line["sites"]) for line in folder.read_rounds()] == [
        list(line["sites"]) for line in whole.read_rounds()
    ]
    np.testing.assert_array_equal(folder.load_checkpoint(8, LAYOUT), whole.load_checkpoint(8, LAYOUT))


def test_a_run_that_quarantine_leaves_too_small_says_whom_it_misses(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=8, strategy={"min_sites": 3})
    with pytest.raises(FederationError, match=r"2 left, 3 needed \(in quarantine: liar \(opposed\)"):
        run(config, app_of([*HONEST, liar(lambda number, update: -update)]), LAYOUT, 3, folder)


def scoring(name: str, dice: Callable[[Task, Vector], float]) -> tuple[str, int, Answer]:
    """A site that claims this Dice for the model that it is sent."""

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        return honest(name, 10, 1.0, lambda given: dice(task, given))(task, weights)

    return name, 10, answer


def learned(task: Task, weights: Vector) -> float:
    return min(float(weights[0]), 4.0) / 5


def first_is_best(task: Task, weights: Vector) -> float:
    return float(task.round == 1)


def test_one_site_of_three_that_claims_a_dice_of_one_chooses_nothing(tmp_path: Path) -> None:
    truth = [scoring("a", learned), scoring("b", lambda task, weights: learned(task, weights) / 3)]
    _, state = ran(tmp_path / "run", [*truth, scoring("liar", first_is_best)], rounds=6)
    assert (state.best_round, state.alarms) == (4, {})


def test_scores_that_no_other_site_supports_are_left_out_and_named(tmp_path: Path) -> None:
    """Sites score at different levels, so that the median alone would take the untrained model."""
    easy = scoring("easy", lambda task, weights: 0.6 + 0.3 * learned(task, weights))
    hard = scoring("hard", lambda task, weights: 0.2 + 0.3 * learned(task, weights))
    folder, state = ran(tmp_path / "run", [easy, hard, scoring("liar", first_is_best)], rounds=6)
    assert state.best_round == 4
    assert state.best_mean_dice == pytest.approx((0.84 + 0.44) / 2)
    assert "the scores of liar are left out: with them round 0 would be released" in state.alarms["scores liar"]
    assert folder.checkpoint_path(4).exists() and folder.checkpoint_path(0).exists()


def test_two_sites_that_prefer_other_models_ask_a_person_and_keep_both(tmp_path: Path) -> None:
    folder, state = ran(tmp_path / "run", [scoring("a", learned), scoring("liar", first_is_best)], rounds=6)
    assert "depends on one site" in state.alarms["release"]
    assert "a person must say which to use" in describe_run(folder_with_name(folder)).as_text()
    kept = {int(path.stem.removeprefix("round_")) for path in (folder.path / "checkpoints").glob("round_*")}
    assert kept >= {0, 4}


def folder_with_name(folder: RunFolder) -> RunFolder:
    folder.write_text("federation.yaml", "name: tiny\nrounds: 6\n")
    return folder
