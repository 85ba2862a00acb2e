"""Verification of exported models: what is proven, and every kind of tampering with its own message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from client.cli.entry import main
from common.audit import AuditLog
from common.models.export_manifest import parse_manifest
from common.system.state_file import digest_of_file
from server.export.export import ExportOptions, export_model
from server.provisioning.kits import provision
from tests.exported import federation, networked_run, without_audit_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its kits, another federation's kits, and the run's model: signed, unsigned, of a simulation."""
    folder = tmp_path_factory.mktemp("exports")
    run = networked_run(folder)
    provision(federation(), folder / "others")
    export_model(run, ExportOptions(folder / "signed", folder / "kits/server"))
    export_model(run, ExportOptions(folder / "unsigned"))
    export_model(without_audit_log(run, folder / "simulation"), ExportOptions(folder / "simulated"))
    return folder


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    """A copy of the signed model."""
    return Path(shutil.copytree(folder / "signed", tmp_path / "model"))


def verify(model: Path, *arguments: object) -> int:
    return main(["verify", "--model", str(model), *map(str, arguments)])


def test_a_model_is_proven_down_to_the_audit_log(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proof = ("--kit", folder / "kits/sites/north", "--audit", folder / "run/audit.jsonl")
    assert verify(folder / "signed", *proof) == 0
    text = capsys.readouterr().out
    assert "all 5 as manifest.json says" in text
    assert digest_of_file(folder / "signed/model.safetensors") in text
    assert "of the federation's server" in text and "is in the log that you gave" in text
    # The authority's certificate alone says the same, and the log may have grown.
    log = folder / "grown.jsonl"
    for name in ("audit.jsonl", "audit.jsonl.head"):
        shutil.copy(folder / "run" / name, folder / name.replace("audit", "grown"))
    AuditLog(log).append("server_started")
    assert verify(folder / "signed", "--authority", folder / "kits/server/ca.crt", "--audit", log, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["whole_log"] and found["authority"] and found["files"] == 5 and found["federation"] == "tiny"


def test_what_is_not_proven_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "signed": "only your federation's ca.crt proves whose key that is",
        "unsigned": "none: nobody answers for this model",
        "simulated": "none: the run was simulated",
    }
    for name, text in expected.items():
        assert verify(folder / name) == 0
        assert text in capsys.readouterr().out


def rewrite(model: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the manifest as somebody who knows its format."""
    file = model / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=2) + "\n")


def adopt(model: Path, *names: str) -> None:
    """Let the manifest name files as they are now."""

    def change(content: dict[str, object]) -> None:
        files = content["files"]
        assert isinstance(files, dict)
        for name in names:
            file = model / name
            files[name] = {"bytes": file.stat().st_size, "sha256": digest_of_file(file)}

    rewrite(model, change)


def append(model: Path, name: str) -> None:
    with (model / name).open("ab") as stream:
        stream.write(b" ")


def become_unsigned(model: Path) -> None:
    for name in ("signer.crt", "manifest.sig"):
        (model / name).unlink()

    def change(content: dict[str, object]) -> None:
        files = content["files"]
        assert isinstance(files, dict)
        del files["signer.crt"]
        content["signer"] = None

    rewrite(model, change)


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda model: append(model, "model.safetensors"), "model.safetensors: was changed"),
    "card": (lambda model: (model / "README.md").write_text("safe for all patients"), "README.md: was changed"),
    "a file is gone": (lambda model: (model / "model.json").unlink(), "model.json: is missing"),
    "a file more": (lambda model: (model / "setup.py").write_text("import os"), "setup.py: is not in manifest.json"),
    "a hidden file": (lambda model: (model / ".x").write_text(""), ".x: is not in manifest.json"),
    "a link": (lambda model: (model / "more").symlink_to("/"), "more: is a link"),
    "manifest": (lambda model: rewrite(model, lambda c: c.update(round=2)), "is not the signer's signature"),
    "manifest and card": (
        lambda model: (append(model, "README.md"), adopt(model, "README.md")),
        "is not the signer's signature",
    ),
    "signature": (lambda model: (model / "manifest.sig").write_bytes(b"AAAA"), "is not the signer's signature"),
    "no signature": (lambda model: (model / "manifest.sig").unlink(), "manifest.sig: is missing"),
    "signature and signer": (become_unsigned, "names no signer: this model is not signed"),
    "no manifest": (lambda model: (model / "manifest.json").unlink(), "manifest.json: is missing"),
    "half a manifest": (
        lambda model: (model / "manifest.json").write_text((model / "manifest.json").read_text()[:300]),
        "manifest.json: was changed or cut",
    ),
    "a later format": (lambda model: rewrite(model, lambda c: c.update(format_version=9)), "reads version 1"),
    "a path outside": (
        lambda model: rewrite(model, lambda c: c.update(files={"../x": {"bytes": 1, "sha256": "00" * 32}})),
        "../x",
    ),
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_found(model: Path, folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    tamper, message = TAMPERING[kind]
    tamper(model)
    assert verify(model, "--kit", folder / "kits/sites/north") != 0
    assert message in capsys.readouterr().err


def test_a_signature_of_another_federation_does_not_count(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(folder / "run", ExportOptions(tmp_path / "forged", folder / "others/server"))
    assert verify(tmp_path / "forged") == 0
    capsys.readouterr()
    assert verify(tmp_path / "forged", "--kit", folder / "kits/sites/north") != 0
    assert "signer.crt: was not signed by the authority" in capsys.readouterr().err


def test_a_site_cannot_sign_a_model(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "kits/sites/north/site.crt", model / "signer.crt")
    assert verify(model, "--kit", folder / "kits/sites/north") != 0
    assert "signer.crt: is not a certificate for a server" in capsys.readouterr().err


def test_a_signature_outside_of_the_certificates_validity_does_not_count(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, _ = parse_manifest(model)
    late = manifest.created + timedelta(days=36_500)
    rewrite(model, lambda content: content.update(created=late.isoformat()))
    assert verify(model, "--kit", folder / "kits/sites/north") != 0
    assert "and the model was signed on" in capsys.readouterr().err


def test_an_unsigned_model_must_still_be_whole_and_named_by_its_log(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tampered(change: Callable[[Path], object], *arguments: object) -> str:
        model = tmp_path / "model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(folder / "unsigned", model)
        change(model)
        assert verify(model, *arguments) != 0
        return capsys.readouterr().err

    def other_weights(model: Path) -> None:
        append(model, "model.safetensors")
        adopt(model, "model.safetensors")

    def edited_entry(model: Path) -> None:
        file = model / "release.jsonl"
        file.write_bytes(file.read_bytes().replace(b'"round":1', b'"round":2'))
        adopt(model, "release.jsonl")

    def shorter_part(model: Path) -> None:
        file = model / "release.jsonl"
        file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
        adopt(model, "release.jsonl")

    def other_entry(model: Path) -> None:
        log = AuditLog(model.parent / f"{model.name}.jsonl")
        entry = log.append("model_released", round=1, sites=["north"], sha256="00" * 32)
        shutil.copy(log.path, model / "release.jsonl")
        adopt(model, "release.jsonl")
        rewrite(
            model,
            lambda content: content.update(audit={"released": entry.hash, "entries": entry.n, "head": entry.hash}),
        )

    def nothing(model: Path) -> None:
        del model

    assert "are of different models" in tampered(other_weights)
    assert "its hash does not match its content" in tampered(edited_entry)
    assert "is not the part of the audit log" in tampered(shorter_part)
    assert "its first entry does not name this model" in tampered(other_entry)
    other = AuditLog(tmp_path / "other.jsonl")
    other.append("model_released", round=1, sites=["north"], sha256="00" * 32)
    assert "does not hold the entries that lead to this model" in tampered(nothing, "--audit", other.path)
    assert verify(folder / "simulated", "--audit", folder / "run/audit.jsonl") != 0
    assert "the run was simulated" in capsys.readouterr().err


def test_a_folder_that_is_no_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(folder / "run/model") != 0
    assert "give a folder from fedvox-server export" in capsys.readouterr().err
    assert verify(folder / "nowhere") != 0
    assert "there is no such folder" in capsys.readouterr().err
