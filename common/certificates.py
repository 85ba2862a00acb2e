"""Keys and certificates in kits: reading them and checking that they belong together.

All keys are elliptic-curve keys on P-384. A site has one key. It authenticates the site in TLS (with the client
certificate that the federation's authority signed), in Flower's node authentication, and in signed requests to the
gateway.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from common.errors import RESTART_CANNOT_HELP, FedvoxError

AUTHORITY_FILE = "ca.crt"
REVOCATIONS_FILE = "ca.crl"
SITE_KEY_FILE = "site.key"
SITE_CERTIFICATE_FILE = "site.crt"
SERVER_KEY_FILE = "server.key"
SERVER_CERTIFICATE_FILE = "server.crt"
EARLIER_KEY_FILE = "node.key"
"""Name of a site's key in kits of format 1."""
_ASK_FOR_KIT = "ask the coordinator for a new kit"
_PROVISION = "run fedvox-server provision again"


class CertificateError(FedvoxError):
    """A key or a certificate cannot be used."""

    exit_status = RESTART_CANNOT_HELP


@dataclass(frozen=True)
class Identity:
    """A private key and the certificate for it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def public_key(self) -> bytes:
        """Public key as Flower registers it: PEM, SubjectPublicKeyInfo."""
        return public_pem(self.key.public_key())


def site_identity(kit: Path, site: str, now: datetime | None = None) -> Identity:
    """Read a site's key and client certificate from its kit.

    Parameters
    ----------
    kit
        The kit's folder, with ``ca.crt``, ``site.crt`` and ``site.key``.
    site
        Name that the certificate must have.
    now
        Time at which the certificate must be valid; None means the current time.

    Raises
    ------
    CertificateError
        If a file is missing or damaged, the key and certificate do not match, or the certificate belongs to another
        site or authority or is not valid at that time.
    """
    authority = load_certificate(kit / AUTHORITY_FILE)
    certificate = _site_certificate(kit / SITE_CERTIFICATE_FILE, site, authority, _ASK_FOR_KIT)
    key = load_key(kit / SITE_KEY_FILE)
    if key.public_key() != certificate.public_key():
        raise CertificateError(
            f"{kit}: {SITE_KEY_FILE} and {SITE_CERTIFICATE_FILE} do not belong together; copy the key here that "
            f"fedvox-client request made, or {_ASK_FOR_KIT}"
        )
    check_dates(kit / SITE_CERTIFICATE_FILE, certificate, now or datetime.now(UTC), _ASK_FOR_KIT)
    return Identity(key, certificate)


def server_identity(kit: Path, now: datetime | None = None) -> Identity:
    """Read the server's key and certificate from its kit.

    Parameters
    ----------
    kit
        The kit's folder, with ``ca.crt``, ``ca.crl``, ``server.crt`` and ``server.key``.
    now
        Time at which the certificate must be valid; None means the current time.

    Raises
    ------
    CertificateError
        If a file is missing or damaged, the key and certificate do not match, or the certificate or the revocation
        list was issued by another authority or is not valid at that time.
    """
    file = kit / SERVER_CERTIFICATE_FILE
    authority = load_certificate(kit / AUTHORITY_FILE, _PROVISION)
    certificate = server_certificate(file, authority, _PROVISION)
    key = load_key(kit / SERVER_KEY_FILE, _PROVISION)
    if key.public_key() != certificate.public_key():
        raise CertificateError(
            f"{kit}: {SERVER_KEY_FILE} and {SERVER_CERTIFICATE_FILE} do not belong together; {_PROVISION}"
        )
    now = now or datetime.now(UTC)
    check_dates(file, certificate, now, _PROVISION)
    _check_revocations(kit / REVOCATIONS_FILE, authority, now)
    return Identity(key, certificate)


def server_certificate(file: Path, authority: x509.Certificate, advice: str) -> x509.Certificate:
    """Read the certificate of a federation's server, without checking its dates.

    Raises
    ------
    CertificateError
        If it is missing or damaged, was issued by another authority, or is not a server certificate.
    """
    certificate = load_certificate(file, advice)
    _check_issuer(file, certificate, authority, advice)
    _check_purpose(file, certificate, ExtendedKeyUsageOID.SERVER_AUTH, "a server", advice)
    return certificate


def admitted_certificate(kit: Path, site: str) -> x509.Certificate:
    """Read the certificate of an admitted site from a server's kit (``sites/NAME.crt``), without checking its dates.

    Raises
    ------
    CertificateError
        If it is missing or damaged, belongs to another site or authority, or is not a client certificate.
    """
    authority = load_certificate(kit / AUTHORITY_FILE, _PROVISION)
    return _site_certificate(kit / "sites" / f"{site}.crt", site, authority, _PROVISION)


def _site_certificate(file: Path, site: str, authority: x509.Certificate, advice: str) -> x509.Certificate:
    certificate = load_certificate(file, advice)
    _check_issuer(file, certificate, authority, advice)
    name = site_of(certificate)
    if name != site:
        raise CertificateError(f"{file}: is the certificate of {name or 'no site'}, not of {site}; {advice}")
    _check_purpose(file, certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "a site", advice)
    return certificate


def check_dates(file: Path, certificate: x509.Certificate, now: datetime, advice: str) -> None:
    """Check that a certificate is valid at a given time.

    Raises
    ------
    CertificateError
        If it has expired or is not valid yet.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise CertificateError(f"{file}: is not valid before {begin:%Y-%m-%d %H:%M} UTC; check this machine's clock")
    if now >= end:
        raise CertificateError(f"{file}: expired on {end:%Y-%m-%d}; {advice}")


def load_certificate(file: Path, advice: str = _ASK_FOR_KIT) -> x509.Certificate:
    """Read a certificate (PEM) whose key is on P-384.

    Raises
    ------
    CertificateError
        If it is missing or damaged; ``advice`` tells the user what to do.
    """
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        certificate.extensions  # noqa: B018 -- extensions are parsed lazily; this detects damage
        key = certificate.public_key()
    except FileNotFoundError:
        raise CertificateError(f"{file}: is missing; {advice}") from None
    except OSError as error:
        raise CertificateError(f"{file}: cannot be read: {error.strerror}; restore its permissions") from None
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise CertificateError(f"{file}: is damaged; {advice}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError(f"{file}: its key is not an elliptic-curve key on P-384; {advice}")
    return certificate


def load_key(file: Path, advice: str = _ASK_FOR_KIT) -> ec.EllipticCurvePrivateKey:
    """Read a private key on P-384 (PEM, PKCS #8).

    Raises
    ------
    CertificateError
        If it is missing or damaged; ``advice`` tells the user what to do.
    """
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except FileNotFoundError:
        raise CertificateError(_missing_key(file, advice)) from None
    except OSError as error:
        raise CertificateError(
            f"{file}: cannot be read: {error.strerror}; it must be owned by the account that runs this program"
        ) from None
    except TypeError:
        raise CertificateError(f"{file}: is protected by a passphrase; store it without one, with mode 600") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{file}: is damaged; restore it from a backup, or {advice}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError(f"{file}: is not an elliptic-curve key on P-384; {advice}")
    return key


def key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the public key of a certificate.

    Raises
    ------
    CertificateError
        If it is not an elliptic-curve key on P-384.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError("a certificate's key is not an elliptic-curve key on P-384; run fedvox-server provision")
    return key


def site_of(certificate: x509.Certificate) -> str:
    """Return the site that a certificate names (its common name); empty if it has none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's public key (DER, SubjectPublicKeyInfo) in hexadecimal digits."""
    return key_fingerprint(key_of(certificate))


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the ``fingerprint`` of a key without a certificate."""
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def new_key() -> ec.EllipticCurvePrivateKey:
    """Generate a key on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Encode a private key as kits store it: PEM, PKCS #8, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Encode a public key as Flower registers it: PEM, SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Encode a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _check_issuer(file: Path, certificate: x509.Certificate, authority: x509.Certificate, advice: str) -> None:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateError(f"{file}: was not signed by the authority of {AUTHORITY_FILE}; {advice}") from None


def _check_purpose(
    file: Path, certificate: x509.Certificate, purpose: ObjectIdentifier, holder: str, advice: str
) -> None:
    try:
        purposes = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        purposes = []
    if purpose not in purposes:
        raise CertificateError(f"{file}: is not a certificate for {holder}; {advice}")


def _check_revocations(file: Path, authority: x509.Certificate, now: datetime) -> None:
    """Check the revocation list: with one that is expired or from another authority, TLS rejects every site."""
    try:
        revocations = x509.load_pem_x509_crl(file.read_bytes())
        is_ours = revocations.issuer == authority.subject and revocations.is_signature_valid(key_of(authority))
        end = revocations.next_update_utc
    except OSError as error:
        raise CertificateError(f"{file}: cannot be read: {error.strerror}; {_PROVISION}") from None
    except ValueError:
        raise CertificateError(f"{file}: is damaged; {_PROVISION}") from None
    if not is_ours:
        raise CertificateError(f"{file}: was not signed by the authority of {AUTHORITY_FILE}; {_PROVISION}")
    if end is not None and now >= end:
        raise CertificateError(f"{file}: expired on {end:%Y-%m-%d}; {_PROVISION}")


def _missing_key(file: Path, advice: str) -> str:
    if file.name != SITE_KEY_FILE:
        return f"{file}: is missing; {advice}"
    if file.with_name(EARLIER_KEY_FILE).exists():
        return f"{file}: is missing; {EARLIER_KEY_FILE} comes from an older kit format: {advice}"
    return f"{file}: is missing; copy the key that fedvox-client request made to this path"
