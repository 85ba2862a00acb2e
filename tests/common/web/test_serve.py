"""A real server: where it listens, what it refuses, and that it answers."""

from __future__ import annotations

import logging
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import ConfigError, OutputError
from common.web.listening import Listening
from common.web.serve import _names, serve, served
from server.provisioning.certificate_authority import Authority
from tests.common.web.side import Place
from tests.mutual_tls import write_server


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_server(tmp_path_factory.mktemp("kit"), Authority.create("pages"))


def test_a_page_is_served_to_whoever_has_the_link_and_no_log_has_its_token(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    with served(place.side(), Listening("127.0.0.1", 0), said.append), httpx.Client(follow_redirects=True) as client:
        assert len(said) == 2
        link = said[0].rpartition(" ")[2]
        address = link.partition("/sign-in")[0]
        assert client.get(f"{address}/").url.path == "/sign-in"
        client.post(link, data={"token": "wrong"}, headers={"Origin": address})
        form = {"token": link.rpartition("=")[2]}
        page = client.post(f"{address}/sign-in", data=form, headers={"Origin": address})
        assert "<h1>room</h1>" in page.text
        with client.stream("GET", f"{address}/events") as stream:
            assert next(stream.iter_lines()) == "event: room-1"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/")
    assert "sign-in refused" in caplog.text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert form["token"] not in "".join(ours)


def test_a_page_for_others_needs_tls_and_answers_by_the_names_of_its_certificate(place: Place, kit: Path) -> None:
    with pytest.raises(ConfigError, match="give --tls-cert and --tls-key"):
        Listening("::", 0)
    with pytest.raises(ConfigError, match="both or none"):
        Listening("127.0.0.1", 0, kit / "server.crt")
    said: list[str] = []
    listening = Listening("::", 0, kit / "server.crt", kit / "server.key")
    trusted = ssl.create_default_context(cafile=str(kit / "ca.crt"))
    with served(place.side(), listening, said.append), httpx.Client(verify=trusted) as client:
        link = said[0].rpartition(" ")[2]
        assert link.startswith("https://localhost:")
        assert client.get(link).status_code == 200
        assert client.get(link, headers={"Host": "elsewhere.example"}).status_code == 421


def test_names_are_those_that_browsers_write() -> None:
    assert _names(Listening("0:0:0:0:0:0:0:1", 0)) == ["::1", "localhost"]
    assert _names(Listening("127.0.0.2", 0)) == ["127.0.0.2", "localhost", "127.0.0.1"]


def test_a_certificate_for_a_pattern_alone_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pages")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName("*.hospital.example")])
    certificate = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
    (tmp_path / "pattern.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match="names no host"):
        _names(Listening("::", 0, tmp_path / "pattern.crt", tmp_path / "pattern.key"))


def test_what_is_no_certificate_is_refused(place: Place, kit: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate", encoding="utf-8")
    for certificate, key in (
        (tmp_path / "text.pem", kit / "server.key"),
        (tmp_path / "missing.pem", kit / "server.key"),
        (kit / "ca.crt", kit / "server.key"),
    ):
        with pytest.raises(ConfigError, match="cannot be used for TLS"):
            serve(place.side(), Listening("127.0.0.1", 0, certificate, key), print)


def test_a_port_that_is_taken_is_named(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OutputError, match=f"127.0.0.1:{port}: another program listens there already"):
            serve(place.side(), Listening("127.0.0.1", port), print)
