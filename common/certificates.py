"""Keys and certificates in kits: reading them, and seeing that they belong together.

All keys are elliptic curves over P-384. A site has one: it proves the site in TLS, by the client certificate that the
federation's authority signed, in Flower's node authentication, and in the signatures of requests to the gateway.
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

from common.errors import FedvoxError

AUTHORITY_FILE = "ca.crt"
REVOCATIONS_FILE = "ca.crl"
SITE_KEY_FILE = "site.key"
SITE_CERTIFICATE_FILE = "site.crt"
SERVER_KEY_FILE = "server.key"
SERVER_CERTIFICATE_FILE = "server.crt"
EARLIER_KEY_FILE = "node.key"
"""The name of a site's key in kits of format 1."""
_ASK_FOR_KIT = "ask the coordinator for a new kit"
_PROVISION = "run fedvox-server provision again"


class CertificateError(FedvoxError):
    """A key or a certificate cannot be used."""


@dataclass(frozen=True)
class Identity:
    """A private key and the certificate for it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def public_key(self) -> bytes:
        """The public key as Flower registers it: PEM, SubjectPublicKeyInfo."""
        return public_pem(self.key.public_key())


def site_identity(kit: Path, site: str, now: datetime | None = None) -> Identity:
    """A site's key and client certificate, from its kit.

    Parameters
    ----------
    kit
        the folder, with ``ca.crt``, ``site.crt`` and ``site.key``.
    site
        the name that the certificate must have.
    now
        None is the time by this machine's clock.

    Raises
    ------
    CertificateError
        a file is missing or damaged, they do not belong together, or the certificate is of another site, of another
        authority, or out of its time.
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
    """The server's key and certificate, from its kit.

    Parameters
    ----------
    kit
        the folder, with ``ca.crt``, ``ca.crl``, ``server.crt`` and ``server.key``.
    now
        None is the time by this machine's clock.

    Raises
    ------
    CertificateError
        a file is missing or damaged, they do not belong together, or the certificate or the list of revoked ones is of
        another authority or out of its time.
    """
    file = kit / SERVER_CERTIFICATE_FILE
    authority, certificate = load_certificate(kit / AUTHORITY_FILE, _PROVISION), load_certificate(file, _PROVISION)
    _check_issuer(file, certificate, authority, _PROVISION)
    _check_purpose(file, certificate, ExtendedKeyUsageOID.SERVER_AUTH, "a server", _PROVISION)
    key = load_key(kit / SERVER_KEY_FILE, _PROVISION)
    if key.public_key() != certificate.public_key():
        raise CertificateError(
            f"{kit}: {SERVER_KEY_FILE} and {SERVER_CERTIFICATE_FILE} do not belong together; {_PROVISION}"
        )
    now = now or datetime.now(UTC)
    check_dates(file, certificate, now, _PROVISION)
    _check_revocations(kit / REVOCATIONS_FILE, authority, now)
    return Identity(key, certificate)


def admitted_certificate(kit: Path, site: str) -> x509.Certificate:
    """The certificate of a site that a server's kit lets in (``sites/NAME.crt``), whatever the time.

    Raises
    ------
    CertificateError
        it is missing or damaged, of another site or authority, or not for a site.
    """
    authority = load_certificate(kit / AUTHORITY_FILE, _PROVISION)
    return _site_certificate(kit / "sites" / f"{site}.crt", site, authority, _PROVISION)


def _site_certificate(file: Path, site: str, authority: x509.Certificate, advice: str) -> x509.Certificate:
    certificate = load_certificate(file, advice)
    _check_issuer(file, certificate, authority, advice)
    name = site_of(certificate)
    if name != site:
        raise CertificateError(f"{file}: is the certificate of {name or 'nobody'}, not of {site}; {advice}")
    _check_purpose(file, certificate, ExtendedKeyUsageOID.CLIENT_AUTH, "a site", advice)
    return certificate


def check_dates(file: Path, certificate: x509.Certificate, now: datetime, advice: str) -> None:
    """Sees that a certificate is valid at a time.

    Raises
    ------
    CertificateError
        it has expired, or is not valid yet.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise CertificateError(f"{file}: is valid from {begin:%Y-%m-%d %H:%M} UTC only; is this machine's clock right?")
    if now >= end:
        raise CertificateError(f"{file}: has expired on {end:%Y-%m-%d}; {advice}")


def load_certificate(file: Path, advice: str = _ASK_FOR_KIT) -> x509.Certificate:
    """Reads a certificate (PEM) of a key over P-384.

    Raises
    ------
    CertificateError
        there is none, or it is damaged; ``advice`` says what to do then.
    """
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        certificate.extensions  # noqa: B018 -- parsed only now; damage shows here
        key = certificate.public_key()
    except FileNotFoundError:
        raise CertificateError(f"{file}: is missing; {advice}") from None
    except OSError as error:
        raise CertificateError(f"{file}: cannot be read: {error.strerror}; restore its rights") from None
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise CertificateError(f"{file}: is damaged; {advice}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError(f"{file}: its key is not an elliptic curve over P-384; {advice}")
    return certificate


def load_key(file: Path, advice: str = _ASK_FOR_KIT) -> ec.EllipticCurvePrivateKey:
    """Reads a private key over P-384 (PEM, PKCS #8).

    Raises
    ------
    CertificateError
        there is none, or it is damaged; ``advice`` says what to do then.
    """
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except FileNotFoundError:
        raise CertificateError(_missing_key(file, advice)) from None
    except OSError as error:
        raise CertificateError(
            f"{file}: cannot be read: {error.strerror}; it must belong to the account that runs this"
        ) from None
    except TypeError:
        raise CertificateError(f"{file}: is protected by a passphrase; store it without one, with mode 600") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{file}: is damaged; restore it from a backup, or {advice}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError(f"{file}: is not an elliptic curve over P-384; {advice}")
    return key


def public_key_of(file: Path) -> bytes:
    """The public key in a certificate's file as Flower registers it: PEM, SubjectPublicKeyInfo.

    Raises
    ------
    CertificateError
        the certificate is missing or damaged.
    """
    return public_pem(key_of(load_certificate(file, _PROVISION)))


def key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The public key in a certificate.

    Raises
    ------
    CertificateError
        it is of another kind than all keys of a federation.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError("a certificate's key is not an elliptic curve over P-384; run fedvox-server provision")
    return key


def site_of(certificate: x509.Certificate) -> str:
    """Whose certificate it is: its common name; empty if it has none, or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def fingerprint(certificate: x509.Certificate) -> str:
    """What tells keys apart: the SHA-256 of the public key (DER, SubjectPublicKeyInfo), as hexadecimal digits."""
    return key_fingerprint(key_of(certificate))


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """As ``fingerprint``, of a key without a certificate."""
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new key over P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as it lies in kits: PEM, PKCS #8, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as Flower registers it: PEM, SubjectPublicKeyInfo."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
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
    """With a list of another authority, or an old one, TLS would turn every site away."""
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
        raise CertificateError(f"{file}: has expired on {end:%Y-%m-%d}; {_PROVISION}")


def _missing_key(file: Path, advice: str) -> str:
    if file.name != SITE_KEY_FILE:
        return f"{file}: is missing; {advice}"
    if file.with_name(EARLIER_KEY_FILE).exists():
        return f"{file}: is missing; {EARLIER_KEY_FILE} is of an earlier form of kits: {advice}"
    return f"{file}: is missing; copy the key that fedvox-client request made to this place"
