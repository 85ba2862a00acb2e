"""The manifest of an export, signed with the key of the federation's server."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from common.audit import AuditError, Entry, line_of, verify
from common.certificates import Identity, certificate_pem, fingerprint, server_identity
from common.config.kit import read_kit
from common.errors import ConfigError, DamagedFileError
from common.models.export_manifest import (
    MANIFEST_FILE,
    RELEASE_EVENT,
    RELEASE_FILE,
    SIGNATURE_FILE,
    SIGNED_WITH,
    SIGNER_FILE,
    AuditMark,
    ExportedFile,
    Manifest,
    signed_text,
)
from common.system.files import write_atomically
from common.system.state_file import digest_of_file
from server.run_store.folder import AUDIT_FILE, RunFolder, RunState

_RESTORE = "restore the whole run folder from one backup"


@dataclass(frozen=True)
class AuditPart:
    """The end of a run's audit log, from the entry that names the released model on."""

    mark: AuditMark
    lines: bytes


def open_signer(kit_folder: Path, folder: RunFolder, state: RunState) -> Identity:
    """Read the server's key from the kit that a run was started with.

    Raises
    ------
    ConfigError
        It is no server kit or of another federation, or the run was simulated.
    CertificateError
        Its key or certificate cannot be used.
    """
    if not (folder.path / AUDIT_FILE).exists():
        raise ConfigError(
            f"--kit {kit_folder}: {folder.path} was simulated: it has no audit log, and no key speaks for it; "
            "leave out --kit"
        )
    kit = read_kit(kit_folder, "server")
    if kit.digest != state.digest:
        raise ConfigError(
            f"--kit {kit_folder}: {folder.path} was started with another federation.yaml; give the kit that it was "
            "started with"
        )
    return server_identity(kit_folder)


def audit_part(folder: RunFolder, weights: str) -> AuditPart | None:
    """Return the end of the run's audit log from the last entry that names these weights; None without a log.

    Raises
    ------
    DamagedFileError
        The log is broken, or does not name these weights.
    """
    path = folder.path / AUDIT_FILE
    if not path.exists():
        return None
    found: list[Entry] = []

    def see(entry: Entry) -> None:
        if entry.event == RELEASE_EVENT:
            found.clear()
        if found or entry.event == RELEASE_EVENT:
            found.append(entry)

    try:
        summary = verify(path, see)
    except AuditError as error:
        raise DamagedFileError(path, f"is not as it was written ({error})", _RESTORE) from None
    if not found or found[0].details.get("sha256") != weights:
        raise DamagedFileError(path, "its last release is not the model in model/", _RESTORE)
    mark = AuditMark(released=found[0].hash, entries=summary.entries, head=summary.head)
    return AuditPart(mark, b"".join(map(line_of, found)))


def seal(folder: Path, about: Manifest, signer: Identity | None, part: AuditPart | None) -> None:
    """Write the manifest of all files in a folder, with the part of the audit log and the signature.

    Parameters
    ----------
    folder
        Holds everything else that is exported.
    about
        The manifest without files, signer and audit mark.
    signer
        Who signs; None for nobody.
    part
        From ``audit_part``.
    """
    if part is not None:
        write_atomically(folder / RELEASE_FILE, part.lines)
    if signer is not None:
        write_atomically(folder / SIGNER_FILE, certificate_pem(signer.certificate))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): ExportedFile(bytes=path.stat().st_size, sha256=digest_of_file(path))
        for path in paths
    }
    manifest = Manifest(
        **about.model_dump(exclude={"files", "signer", "audit"}),
        files=files,
        signer=None if signer is None else fingerprint(signer.certificate),
        audit=None if part is None else part.mark,
    )
    data = manifest.as_bytes()
    write_atomically(folder / MANIFEST_FILE, data)
    if signer is not None:
        signature = signer.key.sign(signed_text(data), SIGNED_WITH)
        write_atomically(folder / SIGNATURE_FILE, base64.b64encode(signature) + b"\n")
