"""A federation whose sites learn and whose global model does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.protocol.codec import Result, Task, Vector
from server.rounds.judgement.drift import far_below_since, gaps
from server.run_store.folder import RunFolder
from server.run_store.status import describe_run
from tests import tiny
from tests.server.fake_sites import LAYOUT, Answer, Silent, app_of, honest, run


def line(number: int, scores: Mapping[str, tuple[float | None, float | None]], phase: str = "train") -> dict[str, Any]:
    """A line of rounds.jsonl: site -> Dice of the model that it was sent, and of its own."""
    sites = {
        name: {"status": "ok", "mean_dice": sent, "local_dice": own} if sent is not None else {"status": "missing"}
        for name, (sent, own) in scores.items()
    }
    return {"round": number, "model_round": number - 1, "phase": phase, "sites": sites}


def rounds(*gap: float | None) -> list[dict[str, Any]]:
    """Rounds with these gaps at three sites; None for a round without one."""
    own = [None if value is None else 0.25 + value for value in gap]
    lines = [line(number, dict.fromkeys("abc", (0.25, value))) for number, value in enumerate(own, 1)]
    return [*lines, line(len(lines) + 1, dict.fromkeys("abc", (0.25, None)), "evaluate")]


def test_a_gap_is_a_site_s_own_model_above_the_next_global_one() -> None:
    lines = [
        line(1, {"a": (0.0, 0.75), "b": (0.0, 0.5)}),
        line(2, {"a": (0.25, None), "b": (None, None), "c": (0.5, None)}),
        line(3, {"a": (0.5, 1.0), "b": (0.5, 1.0)}),
    ]
    assert gaps(lines) == {1: {"a": 0.5}}


@pytest.mark.parametrize(
    ("gap", "since"),
    [
        ((0.5,) * 5, 1),
        ((0.5,) * 4, None),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.1), None),
        ((0.5, 0.5, 0.1, 0.5, 0.5, 0.5), None),
        ((0.1, *(0.5,) * 6), 2),
        ((None, 0.5, None, 0.5, None, 0.5), 2),
        ((*(None,) * 4, 0.5, *(None,) * 4, 0.5), 5),
        ((*(None,) * 4, 0.5, *(None,) * 4), None),
        ((0.1,) * 9, None),
        ((-0.5,) * 9, None),
        ((), None),
    ],
)
def test_far_below_in_every_measured_round_for_five_rounds(gap: tuple[float | None, ...], since: int | None) -> None:
    assert far_below_since(rounds(*gap)) == since


@pytest.mark.parametrize(("far", "since"), [(1, None), (2, 1), (3, 1)])
def test_most_sites_must_agree(far: int, since: int | None) -> None:
    """One site alone may be different, or lie."""
    scores = {name: (0.25, 0.75 if place < far else 0.25) for place, name in enumerate("abc")}
    assert far_below_since([line(number, scores) for number in range(1, 7)]) == since


def site(name: str, own: Callable[[Task], float]) -> tuple[str, int, Answer]:
    """A site that says how good its own model is."""

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, update = honest(name, 10, 1.0, lambda given: min(0.9, 0.1 * float(given[0])))(task, weights)
        return (replace(result, local_dice=own(task)) if task.train else result), update

    return name, 10, answer


def ran(folder: Path, own: Callable[[Task], float]) -> tuple[RunFolder, list[str]]:
    made, observer = RunFolder.create(folder), Silent()
    config = tiny.federation(rounds=7, training={"validate_local": 1})
    run(config, app_of([site(name, own) for name in "abc"]), LAYOUT, 3, made, observer)
    made.write_text("federation.yaml", "name: tiny\nrounds: 7\n")
    return made, [text for text in observer.messages if text.startswith("ALARM")]


def test_a_federation_that_does_not_learn_says_so_once_and_in_its_status(tmp_path: Path) -> None:
    folder, told = ran(tmp_path / "run", lambda task: 0.9)
    assert len(told) == 1
    assert "since round 1, the models that most sites trained score more than 0.15 Dice above" in told[0]
    assert told[0] in describe_run(folder).as_text()
    assert folder.read_rounds()[2]["sites"]["a"]["local_dice"] == 0.9


def test_one_that_learns_is_silent(tmp_path: Path) -> None:
    """Each site's own model is a little better than the next global one."""
    folder, told = ran(tmp_path / "run", lambda task: 0.1 * task.round + 0.1)
    assert told == []
    assert gaps(folder.read_rounds())[3] == pytest.approx(dict.fromkeys("abc", 0.1), abs=1e-5)


def test_scores_that_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path / "run")
    sites = [site("a", lambda task: 0.5), *[(name, 10, honest(name, 10, 1.0)) for name in "bc"]]
    run(tiny.federation(rounds=5), app_of(sites), LAYOUT, 3, made)
    found = [line["sites"]["a"]["reason"] for line in made.read_rounds() if "a" in line["sites"]]
    assert set(found[:3]) == {"number-out-of-range"}
