"""Proves that an exported model is whole, who signed it, and that the run's audit log names it."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from pydantic import ValidationError

from common.audit import Entry, head_of, read_part, verify
from common.certificates import fingerprint, key_of, load_certificate, server_certificate
from common.errors import BundleError, ConfigError
from common.formatting import counted, visible
from common.models.bundle_file import DESCRIPTION_FILE, WEIGHTS_FILE, BundleDescription
from common.models.export_manifest import (
    COPY_AGAIN,
    LARGEST,
    MANIFEST_FILE,
    MOST_FILES,
    RELEASE_EVENT,
    RELEASE_FILE,
    SIGNATURE_FILE,
    SIGNED_WITH,
    SIGNER_FILE,
    AuditMark,
    Manifest,
    parse_manifest,
    signed_text,
)
from common.system.state_file import digest_of_file

_DO_NOT_USE = "do not use this model, and ask the coordinator for it"
_MOST_ENTRIES = 2 * MOST_FILES


@dataclass(frozen=True)
class Verification:
    """What was proven of a model.

    Attributes
    ----------
    manifest
        The manifest, which all files match.
    authority
        Fingerprint of the trusted authority whose server signed it; None if it is unsigned, or nobody said whom to
        trust.
    entry
        The audit log's entry that names the model; None for a simulated run.
    whole_log
        Whether the run's whole audit log was compared.
    """

    manifest: Manifest
    authority: str | None
    entry: Entry | None
    whole_log: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        about = self.manifest.model_dump(mode="json", exclude={"files", "format", "format_version"})
        return about | {
            "files": len(self.manifest.files),
            "authority": self.authority,
            "entry": None if self.entry is None else self.entry.n,
            "whole_log": self.whole_log,
        }

    def as_lines(self) -> list[str]:
        """Return what was proven and what was not, in words."""
        about = self.manifest
        return [
            f"files:     all {len(about.files)} as {MANIFEST_FILE} says",
            f"model:     {about.model}, round {about.round} of {visible(about.federation)} (run {visible(about.run)})",
            f"signature: {self._about_signature()}",
            f"audit log: {self._about_log()}",
        ]

    def _about_signature(self) -> str:
        about = self.manifest
        if about.signer is None:
            return "none: nobody answers for this model, and whoever changed it could have made a new manifest"
        if self.authority is None:
            return (
                f"by the key {about.signer}; only your federation's ca.crt proves whose key that is: give --kit or "
                "--authority"
            )
        return f"of the federation's server, dated {about.created:%Y-%m-%d}, under the authority {self.authority}"

    def _about_log(self) -> str:
        mark = self.manifest.audit
        if mark is None or self.entry is None:
            return "none: the run was simulated"
        place = (
            "is in the log that you gave" if self.whole_log else f"leads to the log's entry {mark.entries}, {mark.head}"
        )
        return f"entry {self.entry.n} of {visible(self.entry.time[:19])} names this model, and {place}"


def verify_export(folder: Path, authority: Path | None = None, log: Path | None = None) -> Verification:
    """Verify a folder that ``fedvox-server export`` wrote.

    Parameters
    ----------
    folder
        The model.
    authority
        The federation's ``ca.crt``, from a kit; the model must then be signed under it. None trusts nobody.
    log
        The run's audit log, from the coordinator; the model must then be in it.

    Raises
    ------
    BundleError
        A file was changed, added or removed, the signature is missing or wrong, or the audit log does not name the
        model.
    CertificateError
        ``authority`` cannot be used, or the signer's certificate is not from it.
    AuditError
        The log, or the part of it in the folder, is broken.
    ConfigError
        ``authority`` or ``log`` lies in the folder.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: there is no such folder; give the folder that fedvox-server export wrote")
    for own in filter(None, (authority, log)):
        if own.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{own}: came with the model, so whoever made the model chose it; give one of your own")
    found = _files(folder)
    manifest, data = parse_manifest(folder)
    trusted = None if authority is None else load_certificate(authority)
    _check_signature(folder, manifest, data, trusted)
    _check_files(folder, manifest, found)
    _check_model(folder, manifest)
    entry = _check_release(folder, manifest)
    if log is not None:
        _check_log(log, manifest.audit, folder)
    signed_under = None if trusted is None else fingerprint(trusted)
    return Verification(manifest, signed_under, entry, log is not None)


def _check_signature(folder: Path, manifest: Manifest, data: bytes, trusted: x509.Certificate | None) -> None:
    if manifest.signer is None:
        if trusted is not None:
            raise BundleError(f"{folder / MANIFEST_FILE}: names no signer: this model is not signed; {_DO_NOT_USE}")
        return
    file = folder / SIGNER_FILE
    if trusted is None:
        certificate = load_certificate(file, COPY_AGAIN)
    else:
        certificate = server_certificate(file, trusted, f"it is of another federation: {_DO_NOT_USE}")
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin <= manifest.created < end:
            raise BundleError(
                f"{file}: was valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, and the model was signed on "
                f"{manifest.created:%Y-%m-%d}; {_DO_NOT_USE}"
            )
    if fingerprint(certificate) != manifest.signer:
        raise BundleError(f"{file}: is not the certificate of the signer in {MANIFEST_FILE}; {COPY_AGAIN}")
    try:
        signature = base64.b64decode((folder / SIGNATURE_FILE).read_bytes().strip(), validate=True)
        key_of(certificate).verify(signature, signed_text(data), SIGNED_WITH)
    except FileNotFoundError:
        raise BundleError(
            f"{folder / SIGNATURE_FILE}: is missing, and {MANIFEST_FILE} names a signer; {COPY_AGAIN}"
        ) from None
    except OSError as error:
        raise BundleError(f"{folder / SIGNATURE_FILE}: cannot be read: {error.strerror or error}") from None
    except (ValueError, InvalidSignature):
        raise BundleError(
            f"{folder / SIGNATURE_FILE}: is not the signer's signature of {MANIFEST_FILE}: one of them was changed; "
            f"{COPY_AGAIN}"
        ) from None


def _files(folder: Path) -> set[str]:
    """Return the path of every file, once each is known to be a plain one, and none too large to be read whole."""
    found: set[str] = set()
    waiting, entries = [folder], 0
    try:
        while waiting:
            with os.scandir(waiting.pop()) as content:
                for entry in content:
                    entries += 1
                    if entries > _MOST_ENTRIES:
                        raise BundleError(f"{folder}: holds more files than any model has; {COPY_AGAIN}")
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry))
                    else:
                        found.add(_plain_file(entry, folder))
    except OSError as error:
        raise BundleError(f"{visible(str(error.filename or folder))}: cannot be read: {error.strerror}") from None
    return found


def _plain_file(entry: os.DirEntry[str], folder: Path) -> str:
    shown, about = visible(entry.path), entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(about.st_mode):
        raise BundleError(f"{shown}: is a link, which may lead anywhere; {COPY_AGAIN}")
    if not stat.S_ISREG(about.st_mode):
        raise BundleError(f"{shown}: is a pipe, socket or device, and no model has one; {COPY_AGAIN}")
    name = Path(entry).relative_to(folder).as_posix()
    if about.st_size > LARGEST.get(name, about.st_size):
        raise BundleError(f"{shown}: has {counted(about.st_size, 'byte')}, far too many; {COPY_AGAIN}")
    return name


def _check_files(folder: Path, manifest: Manifest, found: Collection[str]) -> None:
    ours = {MANIFEST_FILE} if manifest.signer is None else {MANIFEST_FILE, SIGNATURE_FILE}
    found = set(found) - ours
    if missing := sorted(set(manifest.files) - found):
        raise BundleError(f"{folder / missing[0]}: is missing, and {MANIFEST_FILE} names it; {COPY_AGAIN}")
    for name, expected in manifest.files.items():
        path = folder / name
        try:
            same = path.stat().st_size == expected.bytes and digest_of_file(path) == expected.sha256
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from None
        if not same:
            raise BundleError(f"{path}: was changed: its SHA-256 is not the one in {MANIFEST_FILE}; {COPY_AGAIN}")
    if added := sorted(found - set(manifest.files)):
        raise BundleError(
            f"{visible(str(folder / added[0]))}: is not in {MANIFEST_FILE}: it was added later "
            f"({counted(len(added), 'such file')}); remove it, or {COPY_AGAIN}"
        )


def _check_model(folder: Path, manifest: Manifest) -> None:
    try:
        described = BundleDescription.model_validate_json((folder / DESCRIPTION_FILE).read_bytes()).weights.sha256
        weights = manifest.files[WEIGHTS_FILE].sha256
    except (OSError, KeyError, ValidationError):
        raise BundleError(f"{folder}: holds no model that this Fedvox can read; {COPY_AGAIN}") from None
    if not described == weights == manifest.model:
        raise BundleError(
            f"{folder}: {WEIGHTS_FILE}, {DESCRIPTION_FILE} and {MANIFEST_FILE} are of different models; {_DO_NOT_USE}"
        )


def _check_release(folder: Path, manifest: Manifest) -> Entry | None:
    """Return the audit log's entry that names the model, after following the log from it to where it stood."""
    mark = manifest.audit
    if mark is None:
        return None
    path = folder / RELEASE_FILE
    entries = read_part(path)
    first, last = entries[0], entries[-1]
    if (first.hash, last.hash, last.n) != (mark.released, mark.head, mark.entries):
        raise BundleError(f"{path}: is not the part of the audit log that {MANIFEST_FILE} means; {_DO_NOT_USE}")
    if first.event != RELEASE_EVENT or first.details.get("sha256") != manifest.model:
        raise BundleError(f"{path}: its first entry does not name this model; {_DO_NOT_USE}")
    return first


def _check_log(log: Path, mark: AuditMark | None, folder: Path) -> None:
    if mark is None:
        raise BundleError(f"{folder / MANIFEST_FILE}: names no audit log: the run was simulated; leave out --audit")
    if log.exists() and not head_of(log).exists():
        raise BundleError(f"{log}: {head_of(log).name} is not beside it; copy both, or nobody knows where the log ends")
    hashes = verify(log).hashes
    if not {mark.released, mark.head} <= hashes:
        raise BundleError(
            f"{log}: does not hold the entries that lead to this model: it is of another run, or was changed"
        )
