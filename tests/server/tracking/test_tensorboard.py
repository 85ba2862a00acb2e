from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError, OutputError
from server.cli import main
from server.tracking.tensorboard_log import FOLDER, TensorboardLog
from tests.e2e.commands import call
from tests.server.tracking.growing_run import GrowingRun

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads."""
    reader = event_accumulator.EventAccumulator(str(run / FOLDER), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(item.step, item.value) for item in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_curves_grow_with_the_run_and_are_there_once_after_a_restart(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run")
    killed = TensorboardLog(run.path)
    killed.send(ended=False)
    run.begin()
    run.commit(1)
    killed.send(ended=False)
    run.commit(2)
    killed.send(ended=False)
    assert [step for step, _ in curves(run.path)["mean_dice"]] == [0, 1]
    # Cut within a record, as by a kill.
    [file] = (run.path / FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    for number in (3, 4):
        run.commit(number)
    run.end()
    done = call(main, "track", run.path, "--tensorboard")
    assert done.returncode == 0, done.stderr
    found = curves(run.path)
    assert found["mean_dice"] == [(line["model_round"], pytest.approx(line["mean_dice"])) for line in run.lines]
    assert [step for step, _ in found["site.north/train_loss"]] == [1, 2, 3]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    (run.path / FOLDER).write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        TensorboardLog(run.path).send(ended=True)


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from server.tracking.settings import TrackingSettings

    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'fedvox\[tensorboard\]'"):
        TrackingSettings(tensorboard=True)
