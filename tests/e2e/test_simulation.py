"""The command line, as a user runs it, on real files; in this process where nothing depends on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.cli import main as client
from server.cli import main as server
from tests import tiny
from tests.e2e.commands import call


def process(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What a command gives in a process of its own."""
    command = [sys.executable, "-m", f"{program}.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def scores(run: Path) -> list[object]:
    """What must be equal between runs: everything but times."""
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    keys = ("round", "phase", "mean_dice", "dice", "train_loss", "bytes_up")
    return [[line[key] for key in keys] + [site["train_loss"] for site in line["sites"].values()] for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds, from the file to the report."""
    folder = tmp_path_factory.mktemp("finished")
    federation = tiny.write_federation(folder)
    options = ("--out", folder / "run", "--cache", folder / "cache", "--set", "simulation.pooled=true")
    done = process("server", "simulate", federation, *options)
    assert done.returncode == 0, done.stderr
    assert str(folder / "run" / "report.html") in done.stdout
    return folder / "run"


def test_the_run_folder_holds_what_the_contract_says(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "federation.yaml",
        "plan.json",
        "partition.json",
        "rounds.jsonl",
        "events.jsonl",
        "checkpoints",
        "model",
        "summary.json",
        "report.html",
        "validation.csv",
    }
    lines = [json.loads(line) for line in (finished / "rounds.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["train", "train", "train", "evaluate"]
    for line in lines:
        assert set(line["sites"]) == {"phantom-site-a", "phantom-site-b"} or len(line["sites"]) == 2
        for site in line["sites"].values():
            assert {"status", "examples", "train_loss", "dice", "seconds", "epsilon"} <= set(site)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["rounds_done"] == 3
    assert summary["pooled"]["mean_dice"] is not None
    assert "PHANTOM" in (finished / "report.html").read_text().upper()


def test_run_and_cache_are_their_owners_alone(finished: Path) -> None:
    for folder in (finished, finished.parent / "cache"):
        paths = [folder, *folder.rglob("*")]
        assert len(paths) > 4
        assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}
        assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}


def test_no_patient_is_in_two_places(finished: Path) -> None:
    sites = json.loads((finished / "partition.json").read_text())["sites"]
    cases = [case for site in sites.values() for part in ("train", "validation") for case in site[part]]
    assert len(cases) == len(set(cases)) == 8


def test_same_seed_same_result(finished: Path, tmp_path: Path) -> None:
    federation = tiny.write_federation(tmp_path)
    done = call(server, "simulate", federation, "--out", tmp_path / "run", "--no-cache")
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path / "run") == scores(finished)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (tmp_path / "run", finished)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_uninterrupted(finished: Path, tmp_path: Path, ending: signal.Signals) -> None:
    federation = tiny.write_federation(tmp_path)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "server.cli", "simulate", federation, "--out", run, "--cache", tmp_path / "cache"]
    running = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run that was started in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (run / "rounds.jsonl").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(ending)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "--resume" in errors
    said = [line for line in errors.splitlines() if "interrupted;" in line or line.endswith("interrupted")]
    assert len(said) == 1, said
    assert "Traceback" not in errors
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds_done"] < 3
    assert (run / "report.html").exists()
    resume = ("simulate", federation, "--out", run, "--cache", tmp_path / "cache", "--resume")
    done = call(server, *resume)
    assert done.returncode == 0, done.stderr
    assert scores(run) == scores(finished)
    again = call(server, *resume)
    assert again.returncode == 0
    assert "nothing is left to do" in again.stderr


def test_resume_with_another_configuration_is_refused(finished: Path, tmp_path: Path) -> None:
    federation = tiny.write_federation(tmp_path)
    done = call(server, "simulate", federation, "--out", finished, "--resume", "--set", "seed=9")
    assert done.returncode == 2
    assert "with a different configuration" in done.stderr


def test_status_report_and_export(finished: Path, tmp_path: Path) -> None:
    status = call(server, "status", finished)
    assert status.returncode == 0
    assert "finished, 3 of 3 rounds" in status.stdout
    assert json.loads(call(server, "status", finished, "--json").stdout)["rounds_done"] == 3
    assert call(server, "report", finished).stdout.strip() == str(finished / "report.html")
    export = call(server, "export", finished, "--out", tmp_path / "model")
    assert export.returncode == 0, export.stderr
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"model.safetensors", "model.json", "README.md", "manifest.json"}
    proof = call(client, "verify", "--model", tmp_path / "model")
    assert proof.returncode == 0 and "none: the run was simulated" in proof.stdout
    again = call(server, "export", finished, "--out", tmp_path / "model")
    assert again.returncode == 1
    assert "already exists" in again.stderr


def test_the_bundle_alone_predicts_and_evaluates(finished: Path, tmp_path: Path) -> None:
    call(server, "export", finished, "--out", tmp_path / "model")
    phantoms = finished / "phantoms"
    scan = sorted((phantoms / "imagesTr").glob("*.nii.gz"))[0]
    options = ("--model", tmp_path / "model", "--input", scan, "--output", tmp_path / "o.nii.gz")
    predicted = process("client", "predict", *options)
    assert predicted.returncode == 0, predicted.stderr
    source, result = nib.load(scan), nib.load(tmp_path / "o.nii.gz")
    assert result.shape == source.shape
    np.testing.assert_allclose(result.affine, source.affine, atol=1e-4)
    assert np.issubdtype(result.get_data_dtype(), np.integer)
    table = tmp_path / "metrics.csv"
    evaluated = call(client, "evaluate", "--model", tmp_path / "model", "--data", phantoms, "--out", table)
    assert evaluated.returncode == 0, evaluated.stderr
    assert len(table.read_text().splitlines()) == 1 + 8 * 3


def test_check_finds_phantoms_usable(finished: Path) -> None:
    checked = call(client, "check", "--data", finished / "phantoms")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--set", "training.batch_size=0"], 2, "training.batch_size"),
        (["--set", "roundz=3"], 2, "did you mean rounds?"),
        (["--data", "NOWHERE"], 1, "NOWHERE"),
        (["--data", "EMPTY"], 1, "EMPTY"),
        (["--set", "simulation.phantom=null"], 2, "--data"),
        (["--set", "simulation.partition={method: iid, sites: 5}"], 2, "sites"),
        (["--set", "simulation=null"], 2, "simulation"),
        (["--set", "labels={1: a, 2: b, 3: c, 4: nobody}"], 2, "labels.4"),
        (["--set", "labels={1: a}"], 1, "label"),
        (["--set", "model.patch_size=[17, 16, 16]"], 2, "patch_size"),
        (["--set", "model.groups=3"], 2, "groups"),
        (["--resume"], 1, "--out"),
        (["--out", "USED"], 1, "exists already"),
        (["--out", "FILE/run"], 1, "cannot be made"),
        (["--device", "tpu"], 2, "--device"),
    ],
)
def test_bad_input_is_told_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    complaint: str,
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "USED").mkdir()
    (tmp_path / "USED" / "other.txt").write_text("")
    (tmp_path / "FILE").write_text("")
    federation = tiny.write_federation(tmp_path)
    if "--out" not in arguments and "--resume" not in arguments:
        arguments = [*arguments, "--out", "run"]
    monkeypatch.chdir(tmp_path)
    done = call(server, "simulate", federation, "--cache", "cache", *arguments)
    told = done.stderr
    assert done.returncode == status, told
    assert complaint in told
    assert "Traceback" not in told
    lines = [line for line in told.strip().splitlines() if not line.startswith("reading scans")]
    assert len(lines) <= 6, "warnings, and the error in two lines at most"


@pytest.mark.parametrize("program", ["server", "client"])
def test_help_answers_without_importing_torch(program: str) -> None:
    code = (
        f"import sys; from {program}.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nsys.exit(bool({'torch', 'pydicom'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
