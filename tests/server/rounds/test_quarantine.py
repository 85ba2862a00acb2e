"""Three refusals in five rounds, and the way back."""

from pathlib import Path

import pytest

from common.protocol.codec import Refusal
from server.rounds.judgement.directions import Directions
from server.rounds.quarantine import QuarantineError, read_releases, record_conduct, release
from server.run_store.folder import RunFolder, RunState

BAD = Refusal.NOT_FINITE


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def state() -> RunState:
    return RunState(run="r", digest="d", started="2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("rounds", "held"),
    [
        ([BAD, BAD], False),
        ([BAD, BAD, BAD], True),
        ([BAD, BAD, None, None, BAD], True),
        ([BAD, BAD, None, None, None, BAD, BAD], False),
        ([BAD, BAD, "no reply", BAD], True),
        ([Refusal.NORM_DISPUTED] * 5, False),
    ],
)
def test_three_of_five(folder: RunFolder, rounds: list[Refusal | str | None], held: bool) -> None:
    now = state()
    for reason in rounds:
        outcome = {} if reason == "no reply" else {"a": reason, "b": None}
        record_conduct(folder, now, outcome, Directions())  # type: ignore[arg-type]
    assert ("a" in now.quarantine) == held
    assert "b" not in now.quarantine


def test_a_site_is_told_once(folder: RunFolder) -> None:
    now = state()
    record_conduct(folder, now, {"a": BAD}, Directions())
    assert now.refused_last == {"a": BAD}
    record_conduct(folder, now, {"a": None}, Directions())
    assert now.refused_last == {}


def quarantined(folder: RunFolder) -> RunState:
    now = state()
    for _ in range(3):
        record_conduct(folder, now, {"ä/../b": BAD}, Directions())
    folder.commit(now)
    return now


def test_released_while_it_runs_and_not_before_the_loop_has_read_it(folder: RunFolder) -> None:
    now = quarantined(folder)
    release(folder, "ä/../b")
    folder.commit(now)  # the running loop ends a round: it must not undo the release
    assert read_releases(folder, now) == ["ä/../b"]
    assert now.quarantine == {}
    after = folder.load_state()
    assert after is not None
    assert after.quarantine == {}
    assert read_releases(folder, now) == []
    record_conduct(folder, now, {"ä/../b": BAD}, Directions())
    assert now.quarantine == {}, "it starts again from nothing"


def test_only_a_site_in_quarantine_is_released(folder: RunFolder) -> None:
    with pytest.raises(QuarantineError, match="a is not in quarantine"):
        release(folder, "a")
    quarantined(folder)
    with pytest.raises(QuarantineError, match=r"in it: ä/\.\./b"):
        release(folder, "a")
