"""A federation's own certificate authority, and the keys of its server and sites.

All keys are elliptic curves over P-384. Sites trust the authority's certificate and no other, so the server needs no
certificate from anybody else. A site proves who it is by its key, not by a certificate: Flower's SuperNodes sign every
request, and the server knows the public keys that may.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import FedvoxError, OutputError
from common.files import write_atomically
from common.network_config import is_ip_address

AUTHORITY_YEARS = 10
CLOCKS_MAY_DIFFER = timedelta(hours=1)
RENEW_BEFORE = timedelta(days=30)
LOOPBACK_HOSTS = ("localhost", "127.0.0.1")
LARGEST_REQUEST_BYTES = 64 * 1024


class AuthorityError(FedvoxError):
    """A key, a certificate or a signing request that cannot be used."""


@dataclass(frozen=True)
class ServerCertificate:
    """A certificate and its key, both as PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class SiteKey:
    """A site's key pair in OpenSSH's form, as Flower reads it; ``private`` is None if the site keeps it to itself."""

    public: str
    private: bytes | None


class Authority:
    """Signs the server's certificate.

    Args:
        key: of the authority.
        certificate: of the authority, signed by itself.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, federation: str) -> Authority:
        """A new authority, good for ``AUTHORITY_YEARS``; it can sign servers, but no further authorities."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = _name(f"{federation} federation")
        now = datetime.now(UTC)
        usage = _usage(sign_certificates=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), now, now + timedelta(days=365 * AUTHORITY_YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA384())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Reads ``ca.key`` and ``ca.crt``.

        Raises:
            AuthorityError: they are missing, damaged, or do not belong together.
        """
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            raise AuthorityError(
                f"{folder}: ca.key or ca.crt is missing or damaged; restore the folder from a backup"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise AuthorityError(f"{folder}: ca.key and ca.crt do not belong together; restore them from a backup")
        return cls(key, certificate)

    def save(self, folder: Path) -> None:
        """Writes ``ca.key``, which only its owner may read, and ``ca.crt``."""
        write_private(folder / "ca.key", _private_pem(self._key))
        write_atomically(folder / "ca.crt", self.pem)

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, hosts: Sequence[str], days: int, start: datetime | None = None) -> ServerCertificate:
        """A new key and certificate for a server.

        Args:
            hosts: names and IP addresses that sites reach it by; the loopback interface's own are added.
            days: how long it is valid; never longer than the authority itself.
            start: when that begins; None is now, with an allowance for clocks that are slow.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        begin = start or datetime.now(UTC) - CLOCKS_MAY_DIFFER
        end = min(begin + timedelta(days=days), self.certificate.not_valid_after_utc)
        names = x509.SubjectAlternativeName([_general_name(host) for host in with_loopback(hosts)])
        authority = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            _builder(_name(hosts[0]), self.certificate.subject, key.public_key(), begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        return ServerCertificate(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))

    def why_renew(self, folder: Path, hosts: Sequence[str]) -> str | None:
        """Why ``server.crt`` and ``server.key`` in a folder must be issued anew, in words; None if they are good."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
            key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), password=None)
            certificate.verify_directly_issued_by(self.certificate)
        except FileNotFoundError:
            return "there was none"
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
            return "it was damaged or from another authority"
        if key.public_key() != certificate.public_key():
            return "its key was another one's"
        if hosts_of(certificate) != set(with_loopback(hosts)):
            return "the server's addresses changed"
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        if certificate.not_valid_after_utc - datetime.now(UTC) < min(RENEW_BEFORE, lifetime / 3):
            return "it was about to expire"
        return None


def new_site_key() -> SiteKey:
    """A key pair for a site that lets the coordinator make it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return SiteKey(_openssh(key.public_key()), private)


def read_request(path: Path) -> tuple[str, SiteKey]:
    """A site's name and public key from its signing request (PKCS #10, PEM).

    The request is signed with the private key, so whoever made it has that key.

    Raises:
        AuthorityError: it is none, its signature is wrong, or its key is of another kind.
    """
    try:
        if path.stat().st_size > LARGEST_REQUEST_BYTES:
            raise ValueError
        request = x509.load_pem_x509_csr(path.read_bytes())
    except FileNotFoundError:
        raise AuthorityError(f"{path}: no such file; give the request that fedvox-client request wrote") from None
    except (OSError, ValueError):
        raise AuthorityError(
            f"{path}: is not a signing request; give the .csr file that fedvox-client request wrote"
        ) from None
    names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    key = request.public_key()
    if not request.is_signature_valid:
        raise AuthorityError(f"{path}: its signature is wrong; it was changed on the way, or the key is another one's")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AuthorityError(f"{path}: its key must be an elliptic curve over P-384, as fedvox-client request makes it")
    if len(names) != 1:
        raise AuthorityError(f"{path}: must name one site (CN)")
    return str(names[0].value), SiteKey(_openssh(key), None)


def public_key_pem(openssh: str) -> bytes:
    """A site's public key as Flower's SuperLink stores it.

    Raises:
        AuthorityError: the text is not a public key over P-384 in OpenSSH's form.
    """
    try:
        key = serialization.load_ssh_public_key(openssh.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise AuthorityError("a site's public key is damaged; run fedvox-server provision again") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AuthorityError("a site's public key is not an elliptic curve over P-384; run provision again")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a certificate is valid for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def with_loopback(hosts: Sequence[str]) -> list[str]:
    """The hosts, each once, in their usual spelling, and those by which the server's own parts reach each other."""
    spelled = [str(ipaddress.ip_address(host)) if is_ip_address(host) else host.lower() for host in hosts]
    return list(dict.fromkeys([*spelled, *LOOPBACK_HOSTS]))


def write_private(path: Path, content: bytes) -> None:
    """Writes a secret that only its owner may read, from its first byte on.

    Raises:
        OutputError: the folder does not exist or cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; free space or choose another"
        ) from None


def _openssh(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str) -> x509.Name:
    # A common name has at most 64 characters; what counts are the alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _general_name(host: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(host)) if is_ip_address(host) else x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )
