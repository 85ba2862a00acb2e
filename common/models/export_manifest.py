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
from common.models.bundle_file import DESCRIPTION_FILE, check_format
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
MOST_FILES = 1000
LARGEST = {
    MANIFEST_FILE: 2**22,
    SIGNATURE_FILE: 2**10,
    SIGNER_FILE: 2**16,
    RELEASE_FILE: 2**26,
    DESCRIPTION_FILE: 2**24,
}
"""Most bytes of the files that are read whole when a model is verified."""
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
    files: Annotated[dict[FileName, ExportedFile], Field(max_length=MOST_FILES)]

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
        data = path.read_bytes()
        content = json.loads(data)
    except FileNotFoundError:
        raise BundleError(
            f"{path}: is missing, so nothing is known of the files here; give a folder from fedvox-server export"
        ) from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        content = None
    otherwise = f"was changed or cut: it is no manifest of a model; {COPY_AGAIN}"
    check_format(content, FORMAT, FORMAT_VERSION, path, otherwise)
    try:
        return Manifest.model_validate(content), data
    except ValidationError as error:
        raise BundleError(describe_validation_error(error, Manifest, str(path))) from None


def signed_text(manifest: bytes) -> bytes:
    """Return the text that is signed: nothing else that the same key signs begins in this way."""
    return b"fedvox-export-1\n" + manifest
