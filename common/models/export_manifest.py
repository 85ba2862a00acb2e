"""The manifest of an exported model: what the model is, every file with its SHA-256, and whose key signs all of it.

The signature in ``manifest.sig`` covers the bytes of ``manifest.json``, which names all other files. Whoever trusts the
federation's authority can therefore trust every file. ``release.jsonl`` is the end of the run's audit log, from the
entry that names the model's weights on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, Field, ValidationError

from common.errors import BundleError
from common.plan.base import Frozen, Whole
from common.plan.describe_errors import describe_validation_error
from common.weights.digest import Digest

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
SIGNER_FILE = "signer.crt"
RELEASE_FILE = "release.jsonl"
CARD_FILE = "README.md"
RELEASE_EVENT = "model_released"
"""Event of the audit log that names the weights of a released model by their SHA-256."""
FORMAT = "fedvox-export"
FORMAT_VERSION = 1
SIGNED_WITH = ec.ECDSA(hashes.SHA384())
COPY_AGAIN = "copy the model again, from where it was exported"
_LARGEST_BYTES = 2**22
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"

FileName = Annotated[str, Field(max_length=200, pattern=rf"^{_PART}(/{_PART})*$")]
"""Path of a file within the folder; without ``..`` and hidden names."""
Text = Annotated[str, Field(max_length=200)]


class ExportedFile(Frozen):
    """Size and SHA-256 of a file."""

    bytes: Annotated[Whole, Field(ge=0, le=2**50)]
    sha256: Digest


class AuditMark(Frozen):
    """Where the run's audit log stood when the model was exported.

    Attributes
    ----------
    released
        Hash of the entry that names the model.
    entries
        Number of entries.
    head
        Hash of the last entry.
    """

    released: Digest
    entries: Annotated[Whole, Field(ge=1, le=2**40)]
    head: Digest


class Manifest(Frozen):
    """Content of ``manifest.json``.

    Attributes
    ----------
    created
        When the model was exported, and signed if it is.
    fedvox
        Version of the software that exported it.
    federation, run, digest
        Name of the federation, identifier of the run, digest of the run's configuration.
    round
        The round after which the model was released.
    model
        SHA-256 of the weights, as in the audit log.
    signer
        Fingerprint of the key that signs; None if nobody does.
    audit
        None for a simulated run, which has no audit log.
    files
        All other files of the folder, by path, without the signature.
    """

    format: Literal["fedvox-export"] = "fedvox-export"
    format_version: Annotated[Whole, Field(ge=1, le=1000)] = FORMAT_VERSION
    created: AwareDatetime
    fedvox: Text
    federation: Text
    run: Text
    digest: Text
    round: Annotated[Whole, Field(ge=0, le=1_000_000)]
    model: Digest
    signer: Digest | None
    audit: AuditMark | None
    files: Annotated[dict[FileName, ExportedFile], Field(max_length=1000)]

    def as_bytes(self) -> bytes:
        """Return the content of ``manifest.json``."""
        return (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode()


def parse_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """Read a folder's manifest; return it with its bytes, which are what was signed.

    Raises
    ------
    BundleError
        If it is missing, damaged, or of another version.
    """
    path = folder / MANIFEST_FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_BYTES + 1)
        content = json.loads(data) if len(data) <= _LARGEST_BYTES else None
    except FileNotFoundError:
        raise BundleError(
            f"{path}: is missing, so nothing is known of the files here; give a folder from fedvox-server export"
        ) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{path}: was changed or cut: it is no manifest of a model; {COPY_AGAIN}")
    if content.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {content.get('format_version')}, this Fedvox reads version {FORMAT_VERSION}; "
            "install the Fedvox release that the model was exported with, or a later one"
        )
    try:
        return Manifest.model_validate(content), data
    except ValidationError as error:
        raise BundleError(describe_validation_error(error, Manifest, str(path))) from None


def signed_text(manifest: bytes) -> bytes:
    """Return the text that is signed: nothing else that the same key signs begins in this way."""
    return b"fedvox-export-1\n" + manifest
