"""Verification of exported models: what is proven, and every kind of tampering with its own message."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from client.cli.entry import main
from common.audit import START, AuditLog, head_of
from common.certificates import fingerprint, load_certificate, load_key
from common.models.export_manifest import SIGNED_WITH, parse_manifest, signed_text
from common.system.state_file import digest_of_file
from server.export.export import ExportOptions, export_model
from server.provisioning.certificate_authority import Authority
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


def sign(model: Path, key: Path) -> None:
    """Sign the manifest as it is with a key."""
    signature = load_key(key).sign(signed_text((model / "manifest.json").read_bytes()), SIGNED_WITH)
    (model / "manifest.sig").write_bytes(base64.b64encode(signature))


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


def replace_by_link(model: Path, name: str) -> None:
    """Put the same file elsewhere, and a link to it in its place."""
    (model / name).rename(model.parent / "elsewhere")
    (model / name).symlink_to(model.parent / "elsewhere")


def replace_by_pipe(model: Path, name: str) -> None:
    """Opening a pipe waits for its other end, for ever; its size is 0, as the manifest then says."""
    (model / name).unlink()
    os.mkfifo(model / name)

    def change(content: dict[str, object]) -> None:
        files = content["files"]
        assert isinstance(files, dict)
        files[name] = {"bytes": 0, "sha256": "00" * 32}

    rewrite(model, change)


def make_huge(model: Path, name: str) -> None:
    """A sparse file, as an archive can hold it in a few bytes."""
    with (model / name).open("ab") as stream:
        stream.truncate(2**40)


def make_deep(model: Path) -> None:
    """Folders within folders until their path is longer than any program can name."""
    place = os.open(model, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=place)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda model: append(model, "model.safetensors"), "model.safetensors: was changed"),
    "card": (lambda model: (model / "README.md").write_text("safe for all patients"), "README.md: was changed"),
    "a file is gone": (lambda model: (model / "model.json").unlink(), "model.json: is missing"),
    "a file more": (lambda model: (model / "setup.py").write_text("import os"), "setup.py: is not in manifest.json"),
    "a hidden file": (lambda model: (model / ".x").write_text(""), ".x: is not in manifest.json"),
    "a name that is no text": (
        lambda model: Path(os.fsdecode(bytes(model) + b"/\xff\x1b")).touch(),
        "\\udcff\\x1b: is not in manifest.json",
    ),
    "a link": (lambda model: (model / "more").symlink_to("/"), "more: is a link"),
    "a link for a file": (lambda model: replace_by_link(model, "README.md"), "README.md: is a link"),
    "a link for the manifest": (lambda model: replace_by_link(model, "manifest.json"), "manifest.json: is a link"),
    "a pipe for the manifest": (lambda model: os.mkfifo(model / "manifest.sig.x"), "manifest.sig.x: is a pipe"),
    "a pipe for a file": (lambda model: replace_by_pipe(model, "README.md"), "README.md: is a pipe"),
    "endless folders": (make_deep, "cannot be read: File name too long"),
    "too many files": (
        lambda model: [(model / f"f{number}").touch() for number in range(2001)],
        "holds more files than any model has",
    ),
    "huge weights": (lambda model: make_huge(model, "model.safetensors"), "model.safetensors: was changed"),
    "a huge certificate": (lambda model: make_huge(model, "signer.crt"), "signer.crt: has 1,099,511,627,776 bytes"),
    "a huge signature": (lambda model: make_huge(model, "manifest.sig"), "far too many"),
    "a huge manifest": (lambda model: make_huge(model, "manifest.json"), "far too many"),
    "a huge description": (lambda model: make_huge(model, "model.json"), "far too many"),
    "a huge part of the log": (lambda model: make_huge(model, "release.jsonl"), "far too many"),
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
    "a version that is no number": (
        lambda model: rewrite(model, lambda c: c.update(format_version="\n\x1b[2J" * 90)),
        "manifest.json: format version \\n\\x1b[2J",
    ),
    "a name that a terminal obeys": (
        lambda model: rewrite(model, lambda c: c.update(files={"\x1b[2J": {"bytes": 1, "sha256": "00" * 32}})),
        "\\x1b[2J",
    ),
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


def test_a_manifest_of_another_model_of_the_same_federation_does_not_fit(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(model, model.parent / "other"))
    append(other, "model.safetensors")
    adopt(other, "model.safetensors")
    sign(other, folder / "kits/server/server.key")
    for name in ("manifest.json", "manifest.sig"):
        shutil.copy(other / name, model / name)
    assert verify(model, "--kit", folder / "kits/sites/north") != 0
    assert "model.safetensors: was changed" in capsys.readouterr().err


def test_a_key_that_signs_itself_proves_nothing(folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Authority.create("tiny")
    own.save(model.parent)
    shutil.copy(model.parent / "ca.crt", model / "signer.crt")
    adopt(model, "signer.crt")
    rewrite(model, lambda content: content.update(signer=fingerprint(load_certificate(model / "signer.crt"))))
    sign(model, model.parent / "ca.key")
    assert verify(model) == 0
    assert "only your federation's ca.crt proves whose key that is" in capsys.readouterr().out
    assert verify(model, "--kit", folder / "kits/sites/north") != 0
    assert "signer.crt: was not signed by the authority" in capsys.readouterr().err
    assert verify(model, "--authority", model / "signer.crt") != 0
    assert "signer.crt: came with the model" in capsys.readouterr().err


def test_a_log_without_its_end_proves_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "run/audit.jsonl").read_bytes().splitlines(keepends=True)
    log = tmp_path / "audit.jsonl"
    log.write_bytes(b"".join(whole[:-1]))

    def refused() -> str:
        assert verify(folder / "signed", "--audit", log) != 0
        return capsys.readouterr().err

    assert "audit.jsonl.head is not beside it; copy both" in refused()
    shutil.copy(folder / "run/audit.jsonl.head", head_of(log))
    assert "the end was cut off" in refused()
    last = json.loads(whole[-2])
    head_of(log).write_text(json.dumps({"n": last["n"], "hash": last["hash"]}))
    assert "does not hold the entries that lead to this model" in refused()
    log = folder / "signed/release.jsonl"
    assert "release.jsonl: came with the model" in refused()


def test_no_line_of_the_proof_is_forged_by_a_log(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(folder / "unsigned", tmp_path / "model"))
    entry = {"n": 1, "time": "\nsignature: proven", "event": "model_released", "previous": START}
    entry["sha256"] = parse_manifest(model)[0].model
    body = json.dumps(entry, separators=(",", ":")).encode()
    own = hashlib.sha256(body).hexdigest()
    (model / "release.jsonl").write_bytes(body[:-1] + b',"hash":"%s"}\n' % own.encode())
    adopt(model, "release.jsonl")
    rewrite(model, lambda content: content.update(audit={"released": own, "entries": 1, "head": own}))
    assert verify(model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["files", "model", "signature", "audit log"]


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
