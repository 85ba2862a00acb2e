"""A sweep: what it refuses, what it runs and skips, and what its report shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config.federation import FederationConfig, load_federation
from common.errors import ConfigError
from server.cli.entry import main
from server.reporting.sweep_report import write_sweep_report
from server.reporting.sweep_result import read_result
from server.simulation.sweep import parse_sweep, sweep_configurations
from tests.server.reporting.test_report import Page
from tests.server.run_folder import SITES, write_run_folder

FEDERATION = """
name: tiny
rounds: 1
seed: 1
model: {channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}
training: {local_steps: 1, precision: float32}
privacy: {epsilon: 8, sample_rate: 1.0}
simulation:
  phantom: {cases_per_site: [3, 3], shape: [16, 16, 16]}
  partition: {method: column, file: sites.csv, column: site, validation_fraction: 0.25}
"""


def write(folder: Path, text: str = FEDERATION) -> Path:
    path = folder / "federation.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def configurations(path: Path, item: str) -> dict[str, FederationConfig]:
    found = sweep_configurations(parse_sweep(item), lambda more: load_federation(path, more))
    return {value.text: config for value, config in found.items()}


def run(path: Path, out: Path, *arguments: str) -> int:
    cache = ["--cache", str(path.parent / "cache")]
    return main(["simulate", str(path), "--out", str(out), "--device", "cpu", *cache, *arguments])


def test_each_value_is_a_federation_of_its_own(tmp_path: Path) -> None:
    found = configurations(write(tmp_path), "privacy.epsilon=1,3.5,inf")
    assert list(found) == ["1", "3.5", "inf"]
    assert [config.privacy and config.privacy.epsilon for config in found.values()] == [1.0, 3.5, None]
    assert len({config.digest() for config in found.values()}) == 3


def test_values_may_be_lists_and_words(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert [config.model.channels for config in configurations(path, "model.channels=[4, 8],[8, 16]").values()] == [
        (4, 8),
        (8, 16),
    ]
    assert [config.labels for config in configurations(path, "labels=null,{1: organ}").values()] == [None, {1: "organ"}]
    chosen = configurations(path, "training.trainable=head,all")
    assert [config.training.trainable for config in chosen.values()] == ["head", "all"]


def test_folders_differ_even_where_names_would_not() -> None:
    values = parse_sweep("model.channels=[4, 8],'4-8'").values
    assert [value.folder for value in values] == ["channels-4-8", "channels-4-8-2"]


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ("privacy.epsilon", "write it as key.path=value,value"),
        ("=1,2", "write it as key.path=value,value"),
        ("privacy..epsilon=1", "write it as key.path=value,value"),
        ("privacy.epsilon=", "has no values"),
        ("privacy.epsilon=1,,2", "not valid YAML"),
        ("initial_model=null,~", "null is given twice"),
        ("privacy.epsilon=[1", "not valid YAML"),
        ("privacy.epsilon=1,3,1", "1 is given twice"),
        ("privacy.epsilon=8,8.0", "8.0 is given twice"),
        ("privacy.epsilon=inf,.inf", "is given twice"),
        ("privacy.delta=1e-5,0.00001", "is given twice"),
        ("training.trainable=all,all", "all is given twice"),
    ],
)
def test_what_is_no_sweep(item: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_sweep(item)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ("privacy.epsilom=1,2", "privacy.epsilom: unknown key; did you mean epsilon?"),
        ("nowhere.at_all=1,2", "nowhere: unknown key"),
        ("rounds=1,0", "rounds: must be at least 1 (got 0)"),
        ("privacy.delta=inf,1.0e-5", "privacy.delta"),
    ],
)
def test_values_are_checked_before_anything_runs(
    tmp_path: Path, item: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path), tmp_path / "out", "--sweep", item) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_epsilon_needs_a_privacy_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, FEDERATION.replace("privacy: {epsilon: 8, sample_rate: 1.0}\n", ""))
    assert run(path, tmp_path / "out", "--sweep", "privacy.epsilon=1,2") == 2
    assert "has no privacy section" in capsys.readouterr().err


def test_one_key_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write(tmp_path), tmp_path / "out", "--sweep", "seed=1,2", "--sweep", "rounds=1,2") == 2
    assert "--sweep: given more than once" in capsys.readouterr().err


def test_runs_report_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    assert run(path, out, "--sweep", "privacy.epsilon=8,inf") == 0
    shown = capsys.readouterr()
    assert "privacy.epsilon=8 (1 of 2)" in shown.err
    assert "privacy.epsilon=inf: finished" in shown.out
    sweep = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert sweep["key"] == "privacy.epsilon"
    assert [entry["value"] for entry in sweep["runs"]] == ["8", "inf"]
    assert all(entry["status"] == "finished" and 0 <= entry["mean_dice"] <= 1 for entry in sweep["runs"])
    assert 0 < sweep["runs"][0]["epsilon"] <= 8
    assert sweep["runs"][1]["epsilon"] is None
    assert sum((out / entry["folder"] / "phantoms").exists() for entry in sweep["runs"]) == 0  # made once, for all
    page = Page(out / "report.html")
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == ["epsilon-8/report.html", "epsilon-inf/report.html"]
    assert all((out / str(link)).exists() for link in links)

    before = {entry["folder"]: (out / entry["folder"] / "rounds.jsonl").stat().st_mtime_ns for entry in sweep["runs"]}
    assert run(path, out, "--sweep", "privacy.epsilon=8,inf") == 1
    assert "exists already" in capsys.readouterr().err
    assert run(path, out, "--sweep", "privacy.epsilon=8,inf,20", "--resume") == 0
    assert capsys.readouterr().err.count("nothing is left to do") == 2
    again = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["runs"]
    assert again[:2] == sweep["runs"]
    assert again[2]["status"] == "finished"
    assert before == {name: (out / name / "rounds.jsonl").stat().st_mtime_ns for name in before}

    assert run(path, out, "--sweep", "seed=1,2", "--resume") == 2
    assert "is a sweep of privacy.epsilon, not of seed" in capsys.readouterr().err
    assert run(path, out, "--sweep", "privacy.epsilon=8,inf", "--resume", "--set", "seed=5") == 2
    assert "a different configuration" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear", encoding="utf-8")
    assert run(write(tmp_path), tmp_path / "out", "--sweep", "seed=1,2", "--resume") == 1
    assert "is not the folder of a sweep" in capsys.readouterr().err


def test_a_result_is_the_exact_mean_over_sites(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    rows = ["site,case,label,label_name,dice"]
    rows += ["north,a,1,anterior,0.5", "north,b,1,anterior,0.7", "north,a,2,posterior,0.2", "north,b,2,posterior,"]
    rows += ["south,c,1,anterior,0.9", "south,c,2,posterior,0.7"]
    (folder / "validation.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    partition = {"sites": {"north": {"train": [], "validation": []}, "south": {"train": [], "validation": []}}}
    (folder / "partition.json").write_text(json.dumps(partition), encoding="utf-8")
    result = read_result(folder)
    assert result["sites"] == pytest.approx({"north": 0.4, "south": 0.8})
    assert result["mean_dice"] == pytest.approx(0.6)
    assert result["labels"] == pytest.approx({"anterior": 0.75, "posterior": 0.45})


def test_the_report_of_a_sweep_that_is_under_way(tmp_path: Path) -> None:
    finished = {"value": "inf", "folder": "epsilon-inf"} | read_result(write_run_folder(tmp_path / "epsilon-inf"))
    half = finished | {"value": "3", "folder": "epsilon-3", "mean_dice": finished["mean_dice"] / 2}
    failed = {"value": "1", "folder": "epsilon-1"} | read_result(tmp_path / "epsilon-1")
    runs = [failed | {"status": "failed", "problem": "no <b>site</b> is left"}, half, finished]
    (tmp_path / "sweep.json").write_text(json.dumps({"key": "privacy.epsilon", "runs": runs}), encoding="utf-8")
    page = Page(write_sweep_report(tmp_path))
    assert page.open == []
    assert "2 of 3 runs finished" in page.text
    assert "privacy.epsilon=1: no <b>site</b> is left" in page.text
    assert page.row("3")[1:4] == ["finished", f"{half['mean_dice']:.3f}", "50 %"]
    assert page.row("1")[1:4] == ["failed", "–", "–"]
    assert all(site in page.text for site in SITES)
    assert "http" not in page.source.replace("http://www.w3.org", "")
