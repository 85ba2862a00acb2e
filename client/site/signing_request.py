"""A site's private key, and the request for its certificate.

The private key never leaves the site. The request is a standard signing request (PKCS #10) with the site's name and
public key; its signature proves possession of the private key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from pydantic import TypeAdapter, ValidationError

from common.certificates import SITE_KEY_FILE, CertificateError, key_fingerprint, load_key, new_key, private_pem
from common.config.network import SiteName
from common.errors import ConfigError, OutputError
from common.system.files import write_atomically

KEY_FILE = SITE_KEY_FILE


@dataclass(frozen=True)
class SiteRequest:
    """The files written: the private key, which stays, and the request for the coordinator.

    Attributes
    ----------
    fingerprint
        The ``fingerprint`` of the key, to compare with what the coordinator received.
    """

    key: Path
    request: Path
    fingerprint: str


def make_request(site: str, out: Path) -> SiteRequest:
    """Create an elliptic-curve key over P-384 and a certificate signing request.

    Parameters
    ----------
    site
        Name that the coordinator gave the site.
    out
        Folder for both files; created if missing.

    Raises
    ------
    ConfigError
        If the name is not a valid site name.
    OutputError
        If a key already exists, or the folder cannot be written.
    """
    try:
        TypeAdapter(SiteName).validate_python(site)
    except ValidationError:
        raise ConfigError(f"--name {site}: use lower-case letters, digits and hyphens, at most 63") from None
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    files = SiteRequest(out / KEY_FILE, out / f"{site}.csr", key_fingerprint(key.public_key()))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made: {error.strerror}") from None
    _write_new_secret(files.key, private_pem(key))
    write_atomically(files.request, request.public_bytes(serialization.Encoding.PEM))
    return files


def _write_new_secret(path: Path, content: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OutputError(
            f"{path}: a key already exists ({_described(path)}) and is never replaced; move it away or choose another "
            "folder"
        ) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _described(key: Path) -> str:
    try:
        return f"fingerprint {key_fingerprint(load_key(key).public_key())}"
    except CertificateError:
        return "damaged"
