"""Keys and certificates of kits, and every way in which they can fail to belong together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from common.certificates import (
    CertificateError,
    admitted_certificate,
    certificate_pem,
    key_of,
    load_certificate,
    new_key,
    private_pem,
    server_identity,
    site_identity,
    site_of,
)
from server.provisioning.certificate_authority import Authority
from tests.mutual_tls import public_key_of

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("liver")


@pytest.fixture
def kit(tmp_path: Path, authority: Authority) -> Path:
    return write_site(tmp_path / "north", authority)


def write_site(folder: Path, authority: Authority, site: str = "north", start: datetime | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    key = new_key()
    (folder / "ca.crt").write_bytes(authority.pem)
    (folder / "site.crt").write_bytes(certificate_pem(authority.issue_to_site(site, key.public_key(), 90, start)))
    (folder / "site.key").write_bytes(private_pem(key))
    return folder


def test_a_good_kit_tells_who_it_is(kit: Path) -> None:
    found = site_identity(kit, "north")
    assert site_of(found.certificate) == "north"
    assert found.public_key == public_key_of(kit / "site.crt")
    assert found.public_key.startswith(b"-----BEGIN PUBLIC KEY-----")


def encrypted(key: ec.EllipticCurvePrivateKey) -> bytes:
    protection = serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def of_another_curve() -> bytes:
    return private_pem(ec.generate_private_key(ec.SECP256R1()))


def of_another_kind() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def in_openssh_form() -> bytes:
    return new_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: private_pem(new_key()), r"site\.key and site\.crt do not belong together; copy the key here"),
        (lambda: encrypted(new_key()), r"site\.key: is protected by a passphrase"),
        (lambda: b"", r"site\.key: is damaged"),
        (lambda: private_pem(new_key())[:-60], r"site\.key: is damaged"),
        (in_openssh_form, r"site\.key: is damaged"),
        (of_another_curve, r"site\.key: is not an elliptic-curve key on P-384"),
        (of_another_kind, r"site\.key: is not an elliptic-curve key on P-384"),
    ],
)
def test_a_key_that_does_not_fit_is_refused(kit: Path, content: Callable[[], bytes], message: str) -> None:
    (kit / "site.key").write_bytes(content())
    with pytest.raises(CertificateError, match=message):
        site_identity(kit, "north")


def test_a_missing_key_says_where_it_is(kit: Path) -> None:
    (kit / "site.key").unlink()
    with pytest.raises(CertificateError, match=r"site\.key: is missing; copy the key that fedvox-client request made"):
        site_identity(kit, "north")
    (kit / "node.key").touch()
    with pytest.raises(CertificateError, match=r"node\.key comes from an older kit format: ask the coordinator"):
        site_identity(kit, "north")


def test_another_sites_certificate_is_refused(kit: Path, authority: Authority, tmp_path: Path) -> None:
    other = write_site(tmp_path / "south", authority, "south")
    for file in ("site.crt", "site.key"):
        shutil.copy(other / file, kit)
    with pytest.raises(CertificateError, match=r"site\.crt: is the certificate of south, not of north; ask"):
        site_identity(kit, "north")


def test_another_authoritys_certificate_is_refused(kit: Path, tmp_path: Path) -> None:
    other = write_site(tmp_path / "other", Authority.create("liver"))
    for file in ("site.crt", "site.key"):
        shutil.copy(other / file, kit)
    with pytest.raises(CertificateError, match=r"site\.crt: was not signed by the authority of ca\.crt; ask"):
        site_identity(kit, "north")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (timedelta(days=-91), r"site\.crt: expired on \d{4}-\d\d-\d\d; ask the coordinator for a new kit"),
        (timedelta(days=1), r"site\.crt: is not valid before .* UTC; check this machine's clock"),
    ],
)
def test_a_certificate_out_of_its_time_is_refused(
    tmp_path: Path, authority: Authority, start: timedelta, message: str
) -> None:
    kit = write_site(tmp_path / "kit", authority, start=NOW + start)
    with pytest.raises(CertificateError, match=message):
        site_identity(kit, "north")
    site_identity(kit, "north", now=NOW + start + timedelta(days=45))


def test_the_servers_certificate_is_none_of_a_site_and_the_other_way_round(kit: Path, authority: Authority) -> None:
    issued = authority.issue(["north"], 90)
    (kit / "server.crt").write_bytes((kit / "site.crt").read_bytes())
    (kit / "server.key").write_bytes((kit / "site.key").read_bytes())
    with pytest.raises(CertificateError, match=r"server\.crt: is not a certificate for a server; run fedvox-server"):
        server_identity(kit)
    (kit / "site.crt").write_bytes(issued.certificate)
    (kit / "site.key").write_bytes(issued.key)
    with pytest.raises(CertificateError, match=r"site\.crt: is not a certificate for a site; ask"):
        site_identity(kit, "north")


def test_the_server_has_its_own_words(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    issued, other = authority.issue(["fl.example.org"], 90), authority.issue(["fl.example.org"], 90)
    (tmp_path / "server.crt").write_bytes(issued.certificate)
    with pytest.raises(CertificateError, match=r"server\.key: is missing; run fedvox-server provision again"):
        server_identity(tmp_path)
    (tmp_path / "server.key").write_bytes(other.key)
    with pytest.raises(CertificateError, match=r"do not belong together; run fedvox-server provision again"):
        server_identity(tmp_path)
    (tmp_path / "server.key").write_bytes(issued.key)
    (tmp_path / "ca.crl").write_bytes(authority.revocation_list({}))
    assert key_of(server_identity(tmp_path).certificate) == server_identity(tmp_path).key.public_key()
    with pytest.raises(CertificateError, match=r"server\.crt: expired on"):
        server_identity(tmp_path, now=NOW + timedelta(days=91))


def test_a_list_of_revoked_certificates_that_says_nothing_is_refused(tmp_path: Path, authority: Authority) -> None:
    issued, file = authority.issue(["fl.example.org"], 90), tmp_path / "ca.crl"
    for name, content in (("ca.crt", authority.pem), ("server.crt", issued.certificate), ("server.key", issued.key)):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CertificateError, match=r"ca\.crl: cannot be read: No such file.*; run fedvox-server provision"):
        server_identity(tmp_path)
    file.write_bytes(b"nonsense")
    with pytest.raises(CertificateError, match=r"ca\.crl: is damaged"):
        server_identity(tmp_path)
    file.write_bytes(Authority.create("liver").revocation_list({}))
    with pytest.raises(CertificateError, match=r"ca\.crl: was not signed by the authority of ca\.crt"):
        server_identity(tmp_path)
    file.write_bytes(authority.revocation_list({}))
    server_identity(tmp_path)


@pytest.mark.parametrize("file", ["ca.crt", "site.crt"])
def test_a_damaged_or_missing_certificate_is_named(kit: Path, file: str) -> None:
    good = (kit / file).read_bytes()
    for content in (b"", b"nonsense", good[: len(good) // 2], good.replace(b"MII", b"MIJ")):
        (kit / file).write_bytes(content)
        with pytest.raises(CertificateError, match=rf"{file}: is damaged"):
            site_identity(kit, "north")
    (kit / file).unlink()
    with pytest.raises(CertificateError, match=rf"{file}: is missing; ask the coordinator"):
        site_identity(kit, "north")


def test_a_certificate_that_was_changed_is_refused(kit: Path) -> None:
    certificate = load_certificate(kit / "site.crt").public_bytes(serialization.Encoding.DER)
    changed = serialization_pem(certificate.replace(b"north", b"south"))
    (kit / "site.crt").write_bytes(changed)
    with pytest.raises(CertificateError, match=r"was not signed by the authority"):
        site_identity(kit, "south")


def test_only_certificates_under_their_own_names_are_let_in(tmp_path: Path, kit: Path, authority: Authority) -> None:
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "sites").mkdir()
    shutil.copy(kit / "site.crt", tmp_path / "sites/north.crt")
    assert site_of(admitted_certificate(tmp_path, "north")) == "north"
    shutil.copy(kit / "site.crt", tmp_path / "sites/south.crt")
    with pytest.raises(CertificateError, match=r"south\.crt: is the certificate of north, not of south; run fedvox"):
        admitted_certificate(tmp_path, "south")
    with pytest.raises(CertificateError, match=r"west\.crt: is missing"):
        admitted_certificate(tmp_path, "west")


def serialization_pem(der: bytes) -> bytes:
    import base64

    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
