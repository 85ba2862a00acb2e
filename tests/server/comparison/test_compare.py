"""A comparison from the command to the report: what it makes, continues, and refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from common.imaging.phantoms.dataset import write_phantom_dataset
from server.cli.entry import main
from server.run_store.locks import only_start
from tests.conftest import REPOSITORY
from tests.server.reporting.test_report import Page

FEDERATION = """
name: tiny
rounds: 1
seed: 1
model: {channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}
training: {local_steps: 1, precision: float32}
simulation:
  phantom: {cases_per_site: [3, 4], shape: [16, 16, 16]}
  partition: {method: column, file: sites.csv, column: site, validation_fraction: 0.4}
"""
SITES = ["phantom-site-a", "phantom-site-b"]


def command(place: Path, *more: str, arms: str = "local,fedavg", seeds: int = 1) -> int:
    data = ["--data", str(place / "data")] if (place / "data").exists() else []
    arguments = [*data, "--out", str(place / "out"), "--cache", str(place / "cache"), "--device", "cpu"]
    return main(["compare", str(place / "federation.yaml"), "--arms", arms, "--seeds", str(seeds), *arguments, *more])


def table(place: Path) -> list[dict[str, str]]:
    with (place / "out" / "scores.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def results(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "out" / "results.json").read_text(encoding="utf-8"))
    return found


def times(place: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in place.glob("out/runs/*/*/rounds.jsonl")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("comparison")
    (place / "federation.yaml").write_text(FEDERATION, encoding="utf-8")
    write_phantom_dataset(place / "data", [3, 4], 0, (16, 16, 16))
    assert command(place) == 0
    return place


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_every_model_is_scored_on_every_sites_validation_patients(finished: Path) -> None:
    rows = table(finished)
    models = {(row["arm"], row["model_site"]) for row in rows}
    assert models == {("local", SITES[0]), ("local", SITES[1]), ("fedavg", "")}
    patients = {model: set() for model in models}
    for row in rows:
        patients[row["arm"], row["model_site"]].add((row["site"], row["patient"], row["label"]))
    assert len({frozenset(found) for found in patients.values()}) == 1
    assert {site for site, _, _ in patients["fedavg", ""]} == set(SITES)
    run = json.loads((finished / "out/runs/seed-1/fedavg/partition.json").read_text())
    trained = {case for site in run["sites"].values() for case in site["train"]}
    assert not trained & {row["case"] for row in rows}


def test_results_follow_from_the_table(finished: Path) -> None:
    rows, found = table(finished), results(finished)
    assert found["finished"]
    by_arm = {row["arm"]: row for row in found["arms"]}
    own = [row for row in rows if row["arm"] == "local" and row["model_site"] == row["site"]]
    patients = {row["patient"] for row in own}
    expected = mean(mean(float(row["dice"]) for row in own if row["patient"] == patient) for patient in patients)
    assert by_arm["local"]["dice"]["value"] == pytest.approx(expected, abs=1e-5)
    assert by_arm["local"]["dice"]["patients"] == len(patients)
    assert [row["arm"] for row in found["against_reference"]] == ["local"]
    assert [(row["arm"], row["model_site"]) for row in found["matrix"]] == [
        ("local", SITES[0]),
        ("local", SITES[1]),
        ("fedavg", ""),
    ]
    assert [(row["arm"], row["site"]) for row in found["against_alone"]] == [("fedavg", site) for site in SITES]


def test_the_page_has_every_table_and_links_to_the_runs(finished: Path) -> None:
    page = Page(finished / "out" / "report.html")
    assert not page.open
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == [f"runs/seed-1/{name}/report.html" for name in (*(f"local-{site}" for site in SITES), "fedavg")]
    assert all((finished / "out" / str(link)).exists() for link in links)
    text = " ".join(page.words)
    for words in ("Every model on every site", "Better or worse than alone", "PHANTOM", "3 of 3 runs finished"):
        assert words in text


def test_what_is_there_is_kept_and_what_is_missing_is_made_again(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, scores = times(copied), table(copied)
    (copied / "out/runs/seed-1/fedavg/scores.json").write_text("{}")
    (copied / "out/results.json").unlink()
    shutil.rmtree(copied / f"out/runs/seed-1/local-{SITES[0]}")
    assert command(copied) == 0
    assert capsys.readouterr().err.count("is there already") == 1
    after = times(copied)
    assert [name for name in before if before[name] != after[name]] == [
        name for name in before if name.endswith(f"local-{SITES[0]}/rounds.jsonl")
    ]
    assert table(copied) == scores
    assert results(copied)["finished"]


def test_an_arm_of_personal_models_scores_each_on_its_own_sites_patients(copied: Path) -> None:
    assert command(copied, arms="local,fedavg,fedbn") == 0
    rows = [row for row in table(copied) if row["arm"] == "fedbn"]
    assert {row["model_site"] for row in rows} == {""} and {row["site"] for row in rows} == set(SITES)
    for site in SITES:
        about = json.loads((copied / f"out/runs/seed-1/fedbn/personal-models/{site}/model.json").read_text())
        assert about["provenance"]["site"] == site
        found = [float(row["dice"]) for row in rows if row["site"] == site and row["dice"]]
        assert mean(found) == pytest.approx(about["provenance"]["mean_validation_dice"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "change", "complaint"),
    [
        (["--set", "training.learning_rate=0.1"], {}, "a different federation (training.learning_rate: 0.002 then"),
        ([], {"arms": "fedavg,pooled"}, "--arms: "),
        ([], {"arms": "local"}, "also compares arm fedavg"),
        ([], {"arms": "local,fedavg,multi_krum"}, "needs at least 5 sites"),
        ([], {"arms": "local,fedsgd"}, "--arms fedsgd: is no arm"),
        ([], {"seeds": 0}, "--seeds 0: must be at least 1"),
        (["--set-arm", "fedavg:training.weight_decay=0"], {}, "has no change for this arm"),
        (["--ray-address", "ray://head:10001"], {}, "--ray-address: is for --engine ray"),
        (["--set", "early_stop={}"], {}, "early_stop: arms would make different numbers of gradient steps"),
    ],
)
def test_a_changed_question_is_refused(
    finished: Path, arguments: list[str], change: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(finished)
    assert command(finished, *arguments, **change) == 2
    assert complaint in capsys.readouterr().err
    assert times(finished) == before


def test_changed_data_are_refused_by_name(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = sorted((copied / "data" / "labelsTr").iterdir())[:2]
    shutil.copyfile(other, one)
    assert command(copied) == 1
    assert f"labelsTr/{one.name} was changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["comparison.json", "plan.json", "partition.json", "data.json"])
def test_a_changed_file_of_the_comparison_is_refused_by_name(
    finished: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = finished / "out" / name, times(finished)
    content = file.read_text(encoding="utf-8")
    try:
        file.write_text(content.replace("a", "b", 1), encoding="utf-8")
        assert command(finished) == 2
    finally:
        file.write_text(content, encoding="utf-8")
    assert f"{file}: was changed" in capsys.readouterr().err
    assert times(finished) == before


def test_one_process_at_a_time(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_start(copied / "out"):
        assert command(copied) == 1
    assert f"is running already (process {os.getpid()} on " in capsys.readouterr().err


@pytest.mark.long
def test_sigterm_ends_a_comparison_at_any_moment_and_it_goes_on_to_the_same_scores(copied: Path) -> None:
    command = [sys.executable, "-m", "tests.server.comparison.interrupted_comparisons", str(copied)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended 4 times" in done.stdout


def test_sigterm_ends_a_comparison_whose_run_cannot_write_its_report(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the report hides the interruption, which is none of a run that failed."""
    shutil.rmtree(copied / "out")

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("round 1/1: phantom-site-a"):
                (copied / f"out/runs/seed-1/local-{SITES[0]}/rounds.jsonl").write_text("damaged\n", encoding="utf-8")
                os.kill(os.getpid(), signal.SIGTERM)
            return super().write(text)

    stream, ending = Stream(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        assert command(copied) == 130
    finally:
        signal.signal(signal.SIGTERM, ending)
    said = stream.getvalue()
    assert "interrupted; finished work is kept" in said and "stopping: the report of" in said
    assert "failed" not in said and f"local at {SITES[1]}" not in said


@pytest.mark.long
def test_a_comparison_killed_again_and_again_gives_the_same(copied: Path) -> None:
    command = [sys.executable, "-m", "tests.server.comparison.killed_comparisons", str(copied), "25"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) >= 5


def test_a_folder_of_something_else_is_left_alone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "out")
    (copied / "out").mkdir()
    (copied / "out" / "plan.json").write_text("mine", encoding="utf-8")
    assert command(copied) == 1
    assert "is not the folder of a comparison" in capsys.readouterr().err
    assert [path.name for path in (copied / "out").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("arms", "more", "complaint"),
    [
        ("fedavg,scaffold", [], "--set-arm scaffold:training.optimizer=sgd"),
        ("fedavg", ["--set-arm", "fedavg:training.optimiser=sgd"], "--arms fedavg: training.optimiser"),
    ],
)
def test_settings_of_arms_are_refused_before_data_are_looked_for(
    tmp_path: Path, arms: str, more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "federation.yaml").write_text(FEDERATION, encoding="utf-8")
    assert command(tmp_path, "--data", str(tmp_path / "nowhere"), *more, arms=arms) == 2
    assert complaint in capsys.readouterr().err


def test_a_refused_start_leaves_nothing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("out", "data"):
        shutil.rmtree(copied / name)
    assert command(copied, arms="fedavg,trimmed_mean") == 2
    assert "--arms trimmed_mean: strategy.name trimmed_mean needs at least 3 sites" in capsys.readouterr().err
    assert not (copied / "out").exists()
