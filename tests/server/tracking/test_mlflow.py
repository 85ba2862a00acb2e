"""Runs at a real MLflow server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.cli import main
from server.progress.events import RunStarted
from server.run_store.folder import RunFolder
from server.tracking.follow import Patience, followed, track
from server.tracking.mlflow_client import MlflowError
from server.tracking.mlflow_run import MARK
from server.tracking.settings import MlflowServer, TrackingSettings
from server.tracking.values import parameters_of
from tests import tiny
from tests.e2e.commands import call
from tests.mlflow_server import Mlflow, relay_to, run_mlflow
from tests.server.tracking.growing_run import SITES, GrowingRun

pytest.importorskip("mlflow", reason="a development dependency")


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """Starting it takes as long as all these tests."""
    with run_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


def at(mlflow: Mlflow) -> TrackingSettings:
    return TrackingSettings(MlflowServer(mlflow.url))


def test_a_simulation_is_there_with_metrics_model_and_report(mlflow: Mlflow, tmp_path: Path) -> None:
    settings = tmp_path / "tracking.yaml"
    settings.write_text(f"mlflow: {mlflow.url}\nexperiment: tiny phantoms\n", encoding="utf-8")
    run = tmp_path / "run"
    options = ("--out", run, "--no-cache", "--tracking", settings)
    done = call(main, "simulate", tiny.write_federation(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    assert "tracking" not in done.stderr
    [stored] = mlflow.runs("tiny phantoms")
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    name = stored["info"]["run_id"]
    assert stored["info"]["status"] == "FINISHED"
    assert stored["info"]["end_time"] >= stored["info"]["start_time"]
    assert mlflow.history(name, "mean_dice") == [(line["model_round"], line["mean_dice"]) for line in lines]
    assert mlflow.history(name, "seconds") == [(line["round"], line["seconds"]) for line in lines]
    for site in lines[0]["sites"]:
        trained = [line for line in lines if line["sites"][site]["train_loss"] is not None]
        losses = [(line["round"], line["sites"][site]["train_loss"]) for line in trained]
        assert mlflow.history(name, f"site.{site}/train_loss") == losses
    parameters = {item["key"]: item["value"] for item in stored["data"]["params"]}
    assert parameters["training.local_steps"] == "3"
    assert parameters["plan.model.channels"] == "[8, 16]"
    for file in ("report.html", "federation.yaml", "summary.json", *(path.name for path in (run / "model").iterdir())):
        there = next(path for path in (run / file, run / "model" / file) if path.exists())
        assert mlflow.file(stored, there.relative_to(run).as_posix()) == there.read_bytes()


def test_a_killed_tracker_leaves_nothing_twice_and_nothing_out(mlflow: Mlflow, tmp_path: Path) -> None:
    # More than 2000 metrics, which are two calls; the second one ends within a round.
    run = GrowingRun(tmp_path / "run", rounds=80, name="killed").whole()
    batches: list[bytes] = []
    tracker: subprocess.Popen[bytes]

    def kill_after_two(path: str, content: bytes) -> None:
        if path.endswith("log-batch") and b'"metrics"' in content:
            batches.append(content)
            if len(batches) == 2:
                os.kill(tracker.pid, signal.SIGKILL)
                tracker.wait()

    with relay_to(mlflow, kill_after_two) as relay:
        command = [sys.executable, "-m", "server.cli", "track", run.path, "--mlflow", relay.url]
        tracker = subprocess.Popen(list(map(str, command)))
        assert tracker.wait(timeout=300) == -signal.SIGKILL
    # The kill came within a round: some of its metrics are there, and not yet its mark.
    assert json.loads(batches[1])["metrics"][-1]["key"] != MARK
    track(run.path, at(mlflow))
    [stored] = mlflow.runs("killed")
    name = stored["info"]["run_id"]
    assert stored["info"]["status"] == "FINISHED"
    assert mlflow.history(name, MARK) == [(number, number) for number in range(1, 82)]
    for metric in ("mean_dice", "train_loss", "site.north/mean_dice", "site.south/validation_loss"):
        site = metric.removeprefix("site.").split("/")[0] if "/" in metric else None
        key, at_round = metric.split("/")[-1], "round" if metric == "train_loss" else "model_round"
        parts = [(line[at_round], (line["sites"][site] if site else line)[key]) for line in run.lines]
        assert mlflow.history(name, metric) == [(step, value) for step, value in parts if value is not None]


def test_a_crash_at_any_moment_leaves_nothing_twice_and_nothing_out(mlflow: Mlflow, tmp_path: Path) -> None:
    """The server takes each request, and the tracker is gone before it knows; a new one begins."""
    run = GrowingRun(tmp_path / "run", name="crashes").whole()
    with (run.path / "federation.yaml").open("a", encoding="utf-8") as stream:
        stream.write(f"more: {json.dumps({f'key{number}': number for number in range(150)})}\n")  # two calls
    taken: set[tuple[str, bytes]] = set()

    def crash(path: str, content: bytes) -> None:
        if (path, content) not in taken:
            taken.add((path, content))
            raise ConnectionAbortedError

    with relay_to(mlflow, crash) as relay:
        for _ in range(50):
            try:
                track(run.path, TrackingSettings(MlflowServer(relay.url)))
            except MlflowError:
                continue
            break
    assert len(taken) > 15
    [stored] = mlflow.runs("crashes")
    assert stored["info"]["status"] == "FINISHED"
    name = stored["info"]["run_id"]
    assert mlflow.history(name, MARK) == [(number, number) for number in range(1, 5)]
    scores = [(line["model_round"], line["mean_dice"]) for line in run.lines]
    assert mlflow.history(name, "mean_dice") == scores
    assert {item["key"]: item["value"] for item in stored["data"]["params"]} == parameters_of(RunFolder(run.path))
    for file in ("report.html", "model/weights.safetensors"):
        assert mlflow.file(stored, file) == (run.path / file).read_bytes()


def test_a_run_that_is_sent_again_stays_one_run_and_its_new_report_replaces_the_old(
    mlflow: Mlflow, tmp_path: Path
) -> None:
    run = GrowingRun(tmp_path / "run", name="again").whole()
    track(run.path, at(mlflow))
    (run.path / "report.html").write_text("<title>another</title>", encoding="utf-8")
    track(run.path, at(mlflow))
    [stored] = mlflow.runs("again")
    assert mlflow.file(stored, "report.html") == b"<title>another</title>"
    assert len(mlflow.history(stored["info"]["run_id"], MARK)) == 4


def test_a_run_goes_on_where_it_was_after_a_crash_of_the_server_of_the_federation(
    mlflow: Mlflow, tmp_path: Path
) -> None:
    run, patience = GrowingRun(tmp_path / "run", name="resumed"), Patience(look=0.05)
    with followed(run.path, at(mlflow), print, patience) as emit:
        run.begin()
        emit(RunStarted("resumed", 3, SITES))
        run.commit(1)
        run.leave_uncommitted(2)
    [stored] = mlflow.runs("resumed")
    assert stored["info"]["status"] == "KILLED"
    with followed(run.path, at(mlflow), print, patience) as emit:
        run.drop_uncommitted()
        emit(RunStarted("resumed", 3, SITES))
        for number in (2, 3, 4):
            run.commit(number)
        run.end()
    [stored] = mlflow.runs("resumed")
    assert stored["info"]["status"] == "FINISHED"
    scores = [(line["model_round"], line["mean_dice"]) for line in run.lines]
    assert mlflow.history(stored["info"]["run_id"], "mean_dice") == scores


def test_a_deleted_experiment_is_named(mlflow: Mlflow, tmp_path: Path) -> None:
    import httpx

    run = GrowingRun(tmp_path / "run", name="deleted").whole()
    track(run.path, at(mlflow))
    found = mlflow.get("experiments/get-by-name", experiment_name="deleted")["experiment"]["experiment_id"]
    httpx.post(f"{mlflow.url}/api/2.0/mlflow/experiments/delete", json={"experiment_id": found}, timeout=60)
    done = call(main, "track", run.path, "--mlflow", mlflow.url)
    assert done.returncode == 1
    assert "experiment deleted was deleted at the server" in done.stderr
