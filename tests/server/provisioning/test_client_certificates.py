"""What provision and revoke write is what TLS servers act on: OpenSSL's, in strict form, and Granian's."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.provisioning.certificate_authority import Authority
from server.provisioning.kits import provision, revoke
from tests.mutual_tls import client_context, granian, https_server, server_context, write_site
from tests.server.provisioning.test_kits import network

Serving = Callable[[Path, Path], AbstractContextManager[int]]


def openssl(kit: Path, _: Path) -> AbstractContextManager[int]:
    return https_server(server_context(kit))


@pytest.mark.parametrize("serving", [openssl, granian])
def test_sites_are_let_in_and_everybody_else_is_turned_away_in_the_handshake(tmp_path: Path, serving: Serving) -> None:
    kits = tmp_path / "kits"
    provision(network(address="localhost"), kits)
    authority, other = Authority.load(kits / "authority"), Authority.create("liver")
    strangers = {
        "CERTIFICATE_EXPIRED": write_site(tmp_path / "old", authority, start=datetime.now(UTC) - timedelta(days=100)),
        "UNKNOWN_CA": write_site(tmp_path / "stranger", other),
        "CERTIFICATE_REQUIRED": None,
    }
    shutil.copytree(kits / "sites/south", tmp_path / "south")
    with serving(kits / "server", tmp_path) as port:
        assert asked(port, kits, kits / "sites/north") == "HTTP/1.1 404"
        assert asked(port, kits, tmp_path / "south") == "HTTP/1.1 404"
        for alert, kit in strangers.items():
            found = asked(port, kits, kit)
            # The name is the same with both, but rustls calls a foreign authority's signature a matter of its own.
            assert alert in found or (alert == "UNKNOWN_CA" and "DECRYPT_ERROR" in found), found
    revoke(kits, "south")
    with serving(kits / "server", tmp_path) as port:
        assert asked(port, kits, kits / "sites/north") == "HTTP/1.1 404"
        assert "CERTIFICATE_REVOKED" in asked(port, kits, tmp_path / "south")
    provision(network(address="localhost"), kits, renew=["south"])
    with serving(kits / "server", tmp_path) as port:
        assert asked(port, kits, kits / "sites/south") == "HTTP/1.1 404"
        assert "CERTIFICATE_REVOKED" in asked(port, kits, tmp_path / "south")


def asked(port: int, kits: Path, kit: Path | None) -> str:
    """How the server answers a site; if it refuses, with which alert."""
    context = client_context(kit, kits / "server/ca.crt")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                # A refusal is read before anything is written, which a closed connection would answer by a reset.
                secure.settimeout(0.3)
                try:
                    secure.recv(1)
                except TimeoutError:
                    secure.settimeout(10)
                secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return secure.recv(4096).decode()[:12]
        except ssl.SSLError as error:
            return str(error.reason)


def test_the_server_of_another_federation_is_not_believed(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(network(address="localhost"), kits)
    Authority.create("liver").save(tmp_path)
    with https_server(server_context(kits / "server")) as port:
        context = client_context(kits / "sites/north", tmp_path / "ca.crt")
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(plain, server_hostname="localhost")
