"""Exports: the folder that is written, who signs it, what is refused, and the command that does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.audit import AuditLog
from common.models.export_manifest import parse_manifest
from common.system.state_file import digest_of_file
from server.cli.entry import main
from server.provisioning.kits import provision
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
