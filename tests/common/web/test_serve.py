"""A real server: where it listens, what it refuses, and that it answers."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
import pytest

from common.errors import ConfigError, OutputError
from common.web.listening import Listening
from common.web.serve import serve, served
from server.provisioning.certificate_authority import Authority
from tests.common.web.side import Place
from tests.mutual_tls import write_server


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_server(tmp_path_factory.mktemp("kit"), Authority.create("pages"))


def test_a_page_is_served_to_whoever_has_the_link(place: Place) -> None:
    said: list[str] = []
    with served(place.side(), Listening("127.0.0.1", 0), said.append), httpx.Client(follow_redirects=True) as client:
        assert len(said) == 2
        link = said[0].rpartition(" ")[2]
        address = link.partition("/sign-in")[0]
        assert client.get(f"{address}/").url.path == "/sign-in"
        form = {"token": link.rpartition("=")[2]}
        page = client.post(f"{address}/sign-in", data=form, headers={"Origin": address})
        assert "<h1>room</h1>" in page.text
        with client.stream("GET", f"{address}/events") as stream:
            assert next(stream.iter_lines()) == "event: room-1"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/")


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
