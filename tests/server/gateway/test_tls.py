"""Nobody without a certificate of the federation speaks to the gateway, whatever they know."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.gateway.identity import CLIENT_NAME_HEADER, Sites
from server.provisioning.certificate_authority import Authority
from tests.mutual_tls import client_context, write_site
from tests.server.gateway.lab import ABSENT, Lab, SiteClient, lab, send

PATH = f"/models/{ABSENT}"


def answer(context: ssl.SSLContext, client: SiteClient) -> str:
    """How the gateway answers a request that is signed well; if it refuses the certificate, with which alert."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in client.signed("GET", PATH).items())
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.settimeout(0.3)
                try:
                    secure.recv(1)
                except TimeoutError:
                    secure.settimeout(10)
                secure.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n".encode())
                return secure.recv(4096).decode()[9:12]
        except ssl.SSLError as error:
            return str(error.reason)


@pytest.fixture
def trusts(gateway: Lab) -> Path:
    return gateway.kit / "ca.crt"


def test_a_sites_certificate_is_let_in(gateway: Lab, trusts: Path) -> None:
    assert answer(client_context(gateway.path / "north", trusts), gateway.client()) == "404"


def test_no_certificate(gateway: Lab, trusts: Path) -> None:
    assert "CERTIFICATE_REQUIRED" in answer(client_context(None, trusts), gateway.client())


def test_a_certificate_of_another_authority(gateway: Lab, trusts: Path, tmp_path: Path) -> None:
    found = answer(
        client_context(write_site(tmp_path / "x", Authority.create("tiny"), "north"), trusts), gateway.client()
    )
    assert "DECRYPT_ERROR" in found or "UNKNOWN_CA" in found or "BAD_CERTIFICATE" in found, found


def test_a_certificate_that_has_expired(gateway: Lab, trusts: Path, tmp_path: Path) -> None:
    folder = write_site(tmp_path / "old", gateway.authority, start=datetime.now(UTC) - timedelta(days=100))
    assert "CERTIFICATE_EXPIRED" in answer(client_context(folder, trusts), gateway.client())


def test_the_servers_own_certificate_is_no_sites(gateway: Lab, trusts: Path, tmp_path: Path) -> None:
    context = client_context(None, trusts)
    context.load_cert_chain(gateway.kit / "server.crt", gateway.kit / "server.key")
    assert "CERTIFICATE" in answer(context, gateway.client())


def test_tls_before_1_3(gateway: Lab, trusts: Path) -> None:
    context = client_context(gateway.path / "north", trusts)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "PROTOCOL_VERSION" in answer(context, gateway.client())


def test_http_without_tls(gateway: Lab) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert b"HTTP" not in connection.recv(1000)


def test_http2_is_not_spoken(gateway: Lab, trusts: Path) -> None:
    context = client_context(gateway.path / "north", trusts)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.selected_alpn_protocol() in ("http/1.1", None)
        secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        # A server that speaks it answers with a frame of settings.
        assert secure.recv(1000)[3:4] != b"\x04"


def test_a_certificate_that_was_revoked_before_the_start(tmp_path: Path) -> None:
    """By the list: the handshake already fails."""
    made = Lab(tmp_path)
    south = Sites(made.kit).find("south")
    assert south is not None
    made.revoke_by_list(south.serial)
    try:
        made.start()
        context = client_context(tmp_path / "south", made.kit / "ca.crt")
        assert "CERTIFICATE_REVOKED" in answer(context, made.client("south"))
        assert answer(context, made.client("north")) != "404", "whoever signed"
        assert made.client("north").request("GET", PATH).status == 404
    finally:
        made.kill()


def test_one_sites_certificate_does_not_stand_for_another_sites_signature(gateway: Lab) -> None:
    """Granian does not say which certificate it saw; without the other's key it is of no use, and with it, none."""
    north, south = gateway.client("north"), gateway.client("south")
    stranger = replace(north, name="south")
    found = send(north.connect(), "GET", PATH, stranger.signed("GET", PATH))
    assert (found.status, found.word) == (401, "signature")
    assert send(north.connect(), "GET", PATH, south.signed("GET", PATH)).status == 404


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("proxied"), options=("--tls-ended-by-proxy",)) as made:
        yield made


@pytest.mark.parametrize("name", ["south", "", "NORTH", "north,south", "northx"])
def test_behind_a_proxy_the_certificate_must_be_the_signers(behind_proxy: Lab, name: str) -> None:
    north = behind_proxy.client("north")
    assert north.request("GET", PATH).status == 404
    found = send(north.connect(), "GET", PATH, north.signed("GET", PATH) | {CLIENT_NAME_HEADER: name})
    assert (found.status, found.word) == (401, "certificate")


def test_behind_a_proxy_a_request_without_a_name_is_refused(behind_proxy: Lab) -> None:
    north = replace(behind_proxy.client("north"), extra={})
    found = north.request("GET", PATH)
    assert (found.status, found.word) == (401, "certificate")
