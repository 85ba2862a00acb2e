"""Exports: the folder that is written, who signs it, what is refused, and the command that does it."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.audit import AuditLog
from common.models.export_manifest import parse_manifest
from common.system.state_file import digest_of_file
from server.cli.entry import main
from server.provisioning.kits import provision
from server.run_store.folder import RunFolder
from tests.exported import federation, networked_run, without_audit_log


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networked_run(tmp_path_factory.mktemp("network"))


def export(run: Path, out: Path, *arguments: object) -> int:
    return main(["export", str(run), "--out", str(out), *map(str, arguments)])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_the_model_comes_with_its_card_its_manifest_and_the_end_of_the_audit_log(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert export(run, out, "--kit", run.parent / "kits/server") == 0
    files = {"model.safetensors", "model.json", "README.md", "release.jsonl", "signer.crt"}
    assert names(out) == files | {"manifest.json", "manifest.sig"}
    assert (out / "model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()
    manifest, _ = parse_manifest(out)
    assert set(manifest.files) == files
    for name, file in manifest.files.items():
        assert (file.bytes, file.sha256) == ((out / name).stat().st_size, digest_of_file(out / name))
    assert [json.loads(line)["event"] for line in (out / "release.jsonl").open()] == [
        "model_released",
        "server_stopped",
    ]
    told = capsys.readouterr()
    assert (told.out.strip(), told.err) == (str(out), "")
    assert names(tmp_path) == {"model"} | {f"model/{name}" for name in names(out)}


def test_nothing_else_in_the_runs_folder_is_passed_on(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / "model/notes.txt").write_text("private")
    (other / "model/.hidden").symlink_to("/etc/passwd")
    assert export(other, tmp_path / "model") == 0
    assert not names(tmp_path / "model") & {"notes.txt", ".hidden"}


def test_without_a_kit_nobody_signs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run, tmp_path / "model") == 0
    assert "not signed: --kit" in capsys.readouterr().err
    manifest, _ = parse_manifest(tmp_path / "model")
    assert manifest.signer is None and manifest.audit is not None
    assert not names(tmp_path / "model") & {"signer.crt", "manifest.sig"}


def test_nothing_is_left_of_an_export_that_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated = without_audit_log(run, tmp_path / "simulated")
    provision(federation(rounds=2), tmp_path / "others")
    (tmp_path / "taken").mkdir()
    own = run.parent / "kits/server"
    cases = [
        (run, "taken", (), "already exists"),
        (simulated, "a", ("--kit", own), "was simulated"),
        (run, "a", ("--kit", tmp_path / "others/server"), "was started with another federation.yaml"),
        (run, "a", ("--kit", run.parent / "kits/sites/north"), "is a site kit"),
        (run, "a", ("--kit", tmp_path / "nowhere"), "is not a kit"),
    ]
    before = names(tmp_path)
    for folder, out, options, problem in cases:
        assert export(folder, tmp_path / out, *options) != 0
        assert problem in capsys.readouterr().err
    assert names(tmp_path) == before


def test_a_run_that_goes_on_has_nothing_to_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its model is written before the run has ended, and may be written again."""
    going = Path(shutil.copytree(run, tmp_path / "going"))
    folder = RunFolder(going)
    state = folder.load_state()
    assert state is not None
    state.digests = {name: digest for name, digest in state.digests.items() if not name.startswith("model/")}
    folder.commit(state)
    assert (going / "model/model.safetensors").exists()
    begun = make_run_folder_of(tmp_path / "begun")
    for folder_of_run in (going, begun):
        assert export(folder_of_run, tmp_path / "model") != 0
        assert "has not released a model yet" in capsys.readouterr().err
    assert export(tmp_path, tmp_path / "model") != 0
    assert "is not a run folder" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def make_run_folder_of(path: Path) -> Path:
    """A run of which nothing was done."""
    RunFolder.create(path).write_text("federation.yaml", federation().resolved())
    return path


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        assert export(run, tmp_path / "model") != 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "model: cannot be written: File too large" in capsys.readouterr().err
    assert not names(tmp_path)


@pytest.mark.long
def test_an_export_that_is_killed_leaves_no_model(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = [sys.executable, "-m", "server.cli", "export", str(run), "--out", str(out), "--format", "torchscript"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    while not list(tmp_path.glob(".model.*.part/model.json")):
        assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert export(run, out) == 0


def test_a_model_without_norm_layers_of_its_own_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    personal = networked_run(tmp_path, federation(personal={"method": "norms"}))
    assert export(personal, tmp_path / "model") == 0
    assert "note: The norm layers of the released model were never trained" in capsys.readouterr().err
    card = (tmp_path / "model/README.md").read_text()
    assert "The norm layers of the released model were never trained" in card
    assert "| personal models at sites | norms |" in card


def test_a_log_that_names_another_model_or_was_changed_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    AuditLog(other / "audit.jsonl").append("model_released", round=2, sites=["north"], sha256="00" * 32)
    assert export(other, tmp_path / "model") == 2
    assert "its last release is not the model in model/" in capsys.readouterr().err
    log = other / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"epsilon":null', b'"epsilon":1.00'))
    assert export(other, tmp_path / "model") == 2
    assert "is not as it was written" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
