"""A federation's own certificate authority: issues certificates to its server and sites, and revokes them.

All keys are P-384 elliptic-curve keys. Server and sites trust this authority alone, so neither needs a public
certificate.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from common.certificates import (
    AUTHORITY_FILE,
    SERVER_CERTIFICATE_FILE,
    SERVER_KEY_FILE,
    certificate_pem,
    new_key,
    private_pem,
)
from common.config.network import is_ip_address
from common.errors import FedvoxError
from common.system.files import PRIVATE, write_atomically

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


class Authority:
    """Signs certificates and the revocation list.

    Parameters
    ----------
    key
        The authority's private key.
    certificate
        The authority's self-signed certificate.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, federation: str) -> Authority:
        """Create an authority, valid for ``AUTHORITY_YEARS``, that cannot sign further authorities."""
        key = new_key()
        name = _name(f"{federation} federation")
        now = datetime.now(UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key.public_key(), now, now + timedelta(days=365 * AUTHORITY_YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA384())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read ``ca.key`` and ``ca.crt``.

        Raises
        ------
        AuthorityError
            The files are missing or damaged, or do not belong together.
        """
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate((folder / AUTHORITY_FILE).read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            raise AuthorityError(
                f"{folder}: ca.key or ca.crt is missing or damaged; restore the folder from a backup"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise AuthorityError(f"{folder}: ca.key and ca.crt do not belong together; restore them from a backup")
        return cls(key, certificate)

    def save(self, folder: Path) -> None:
        """Write ``ca.key``, readable by its owner only, and ``ca.crt``."""
        write_atomically(folder / "ca.key", private_pem(self._key), mode=PRIVATE)
        write_atomically(folder / AUTHORITY_FILE, self.pem)

    @property
    def pem(self) -> bytes:
        """The authority's certificate as PEM."""
        return certificate_pem(self.certificate)

    def issue(self, hosts: Sequence[str], days: int, start: datetime | None = None) -> ServerCertificate:
        """Issue a new key and certificate for a server.

        Parameters
        ----------
        hosts
            The host names and IP addresses under which sites reach it; the loopback names are added.
        days
            The period of validity, which never exceeds the authority's own.
        start
            The start of validity; None means now, less an allowance for clock skew.
        """
        key = new_key()
        builder = self._leaf(hosts[0], key.public_key(), days, start, ExtendedKeyUsageOID.SERVER_AUTH)
        names = x509.SubjectAlternativeName([_general_name(host) for host in with_loopback(hosts)])
        certificate = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA384())
        return ServerCertificate(certificate_pem(certificate), private_pem(key))

    def issue_to_site(
        self, site: str, key: ec.EllipticCurvePublicKey, days: int, start: datetime | None = None
    ) -> x509.Certificate:
        """Issue a client certificate for a site's key; ``days`` and ``start`` as in ``issue``."""
        return self._leaf(site, key, days, start, ExtendedKeyUsageOID.CLIENT_AUTH).sign(self._key, hashes.SHA384())

    def revocation_list(self, revoked: Mapping[int, datetime]) -> bytes:
        """Sign a revocation list (PEM), valid as long as the authority because it is not reissued on a schedule.

        Parameters
        ----------
        revoked
            Serial number -> time of revocation.
        """
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - CLOCKS_MAY_DIFFER)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(time.time_ns()), critical=False)
            .add_extension(self._issuer(), critical=False)
        )
        for serial, when in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)

    def is_current(self, file: Path, revoked: Mapping[int, datetime]) -> bool:
        """Return whether a file is this authority's list of exactly these revoked certificates."""
        try:
            found = x509.load_pem_x509_crl(file.read_bytes())
            listed = {entry.serial_number for entry in found}
        except (OSError, ValueError):
            return False
        key = self._key.public_key()
        return found.is_signature_valid(key) and found.issuer == self.certificate.subject and listed == set(revoked)

    def why_renew(self, folder: Path, hosts: Sequence[str]) -> str | None:
        """Return why a folder's ``server.crt`` and ``server.key`` must be reissued, in words; None if they need not."""
        try:
            certificate = x509.load_pem_x509_certificate((folder / SERVER_CERTIFICATE_FILE).read_bytes())
            key = serialization.load_pem_private_key((folder / SERVER_KEY_FILE).read_bytes(), password=None)
            certificate.verify_directly_issued_by(self.certificate)
        except FileNotFoundError:
            return "there was none"
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
            return "it was damaged or from another authority"
        if key.public_key() != certificate.public_key():
            return "its key did not match"
        if hosts_of(certificate) != set(with_loopback(hosts)):
            return "the server's addresses changed"
        return _about_to_expire(certificate)

    def why_renew_site(self, certificate: x509.Certificate) -> str | None:
        """Return why a site's certificate must be reissued for the same key, in words; None if it need not."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return "the authority changed"
        return _about_to_expire(certificate)

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, days: int, start: datetime | None, purpose: ObjectIdentifier
    ) -> x509.CertificateBuilder:
        begin = start or datetime.now(UTC) - CLOCKS_MAY_DIFFER
        end = min(begin + timedelta(days=days), self.certificate.not_valid_after_utc)
        return (
            _builder(_name(name), self.certificate.subject, key, begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._issuer(), critical=False)
        )

    def _issuer(self) -> x509.AuthorityKeyIdentifier:
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def read_request(path: Path) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Return the site's name and public key from a signing request (PKCS #10, PEM).

    The request's signature proves that its author holds the private key.

    Raises
    ------
    AuthorityError
        The file is not a signing request, its signature is wrong, or its key is of another kind.
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
        raise AuthorityError(f"{path}: its signature is wrong; ask the site to make and send the request again")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AuthorityError(f"{path}: its key must be a P-384 elliptic-curve key, as fedvox-client request makes")
    if len(names) != 1:
        raise AuthorityError(f"{path}: must name exactly one site (CN)")
    return str(names[0].value), key


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """Return the host names and IP addresses that a certificate is valid for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def with_loopback(hosts: Sequence[str]) -> list[str]:
    """Normalise and deduplicate hosts, and add the loopback names that the server's own processes use."""
    spelled = [str(ipaddress.ip_address(host)) if is_ip_address(host) else host.lower() for host in hosts]
    return list(dict.fromkeys([*spelled, *LOOPBACK_HOSTS]))


def _about_to_expire(certificate: x509.Certificate) -> str | None:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    return "it was about to expire" if left < min(RENEW_BEFORE, lifetime / 3) else None


def _name(common_name: str) -> x509.Name:
    # A common name is limited to 64 characters; verification uses the alternative names.
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
