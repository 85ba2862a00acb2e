"""Through a hospital's proxy: for files (http.client) and for Flower's calls (httpx)."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from client.courier.connection import Access, client_context
from client.courier.diagnosis import who_opens_tls
from client.courier.errors import LineError
from client.courier.fleet_client import FleetNode
from client.courier.proxy import Proxy, find_address, is_exempt, settle
from common.certificates import site_identity
from common.errors import ConfigError
from server.provisioning.certificate_authority import Authority
from tests.client.courier.kits import Kits
from tests.client.courier.stand_in import StandIn, stand_in
from tests.connect_proxy import connect_proxy
from tests.mutual_tls import write_server

WORD = "pä:ss@w/ör%d"
IN_A_URL = "p%C3%A4%3Ass%40w%2F%C3%B6r%25d"
ALL = [name for lower in ("https_proxy", "http_proxy", "all_proxy", "no_proxy") for name in (lower, lower.upper())]


@pytest.fixture
def gateway(kits: Kits) -> Iterator[StandIn]:
    with stand_in(kits) as gateway:
        yield gateway


def access_to(
    gateway: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], host: str
) -> Access:
    """As the courier makes it, in an environment of the test's."""
    for name in ALL:
        # Also what is not set: it is then so again after the test, whatever the courier's code did to it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kit = gateway.kits.site(folder / "kit", gateway.port)
    gateway.let_in(kit)
    address = find_address(host, gateway.port)
    settle(address)
    return Access("north", site_identity(kit, "north").key, client_context(kit), address, kit / "ca.crt", lambda: None)


def ask_both(access: Access, note: Path) -> tuple[str, str]:
    """A request for a file that is not there, and one to a SuperLink that is not there: what became of them."""
    said = []
    try:
        with access.connection() as connection:
            said.append(str(connection.request("HEAD", f"/models/{'0' * 64}").status))
    except LineError as error:
        said.append(str(error))
    node = FleetNode(access, note)
    try:
        node.pull()
    except LineError as error:
        said.append(str(error))
    node.close()
    return said[0], said[1]


REACHED = ("404", "asking for messages: the server answers 503")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_both_clients_go_through_the_proxy_with_a_password(
    gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with connect_proxy(f"älice:{WORD}") as (port, proxy):
        environment = {variable: f"http://%C3%A4lice:{IN_A_URL}@127.0.0.1:{port}"}
        access = access_to(gateway, tmp_path, monkeypatch, environment, "127.0.0.1")
        assert ask_both(access, tmp_path / "note") == REACHED, (proxy.errors, gateway.errors)
    assert proxy.targets == [f"127.0.0.1:{gateway.port}"] * 2


@pytest.mark.parametrize("login", ["alice:wrong@", "alice@", ""])
def test_a_wrong_password_is_named_but_not_shown(
    gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    with connect_proxy("alice:right") as (port, proxy):
        access = access_to(
            gateway, tmp_path, monkeypatch, {"HTTPS_PROXY": f"http://{login}127.0.0.1:{port}"}, "127.0.0.1"
        )
        for said in ask_both(access, tmp_path / "note"):
            assert f"the proxy 127.0.0.1:{port} refuses user or password (407)" in said
            assert "HTTPS_PROXY" in said
            assert "wrong" not in said
    assert not proxy.targets
    assert not gateway.requests


def test_a_proxy_that_does_not_allow_it_is_named(
    gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy(status=403) as (port, _):
        access = access_to(gateway, tmp_path, monkeypatch, {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}, "127.0.0.1")
        for said in ask_both(access, tmp_path / "note"):
            assert said == f"the proxy 127.0.0.1:{port} refuses the connection (403): ask IT to allow it"


def test_a_proxy_that_is_not_there_is_named(gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = access_to(gateway, tmp_path, monkeypatch, {"HTTPS_PROXY": "http://127.0.0.1:9"}, "127.0.0.1")
    for said in ask_both(access, tmp_path / "note"):
        assert "the proxy 127.0.0.1:9" in said
        assert "Connection refused" in said


@pytest.mark.parametrize("exempt", ["127.0.0.1", "example.org, 127.0.0.0/8", "*"])
def test_exempt_hosts_are_reached_directly(
    gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exempt: str
) -> None:
    with connect_proxy() as (port, proxy):
        environment = {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "NO_PROXY": exempt}
        access = access_to(gateway, tmp_path, monkeypatch, environment, "127.0.0.1")
        assert ask_both(access, tmp_path / "note") == REACHED
    assert not proxy.targets


@pytest.mark.parametrize("through_proxy", [False, True])
def test_ipv6(kits: Kits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through_proxy: bool) -> None:
    with stand_in(kits, host="::1") as gateway, connect_proxy() as (port, proxy):
        environment = {"HTTPS_PROXY": f"http://127.0.0.1:{port}"} if through_proxy else {}
        access = access_to(gateway, tmp_path, monkeypatch, environment, "::1")
        assert ask_both(access, tmp_path / "note") == REACHED
        # httpx leaves the brackets out, which some proxies do not understand: the courier warns of that.
        targets = [f"[::1]:{gateway.port}", f"::1:{gateway.port}"]
        assert proxy.targets == (targets if through_proxy else [])


def test_a_proxy_that_opens_tls_is_named(gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_server(tmp_path / "it", Authority.create("Hospital IT"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other / "server.crt", other / "server.key")
    with connect_proxy(opens=context) as (port, _):
        access = access_to(gateway, tmp_path, monkeypatch, {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}, "127.0.0.1")
        found = who_opens_tls(access.address, access.authority)
        assert found is not None
        assert f"the proxy 127.0.0.1:{port} intercepts TLS" in found
        assert "Hospital IT" in found
        assert found.endswith("ask IT to exempt 127.0.0.1")
        assert ask_both(access, tmp_path / "note") == (found, found)


def test_a_stranger_in_the_servers_place_is_named(
    gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Kits.make(tmp_path / "other")
    with stand_in(other) as stranger:
        access = access_to(gateway, tmp_path, monkeypatch, {}, "127.0.0.1")
        there = find_address("127.0.0.1", stranger.port)
        wrong = Access(access.site, access.key, access.context, there, access.authority, lambda: None)
        for said in ask_both(wrong, tmp_path / "note"):
            assert "not by the federation's authority" in said
            assert "ask IT to exempt 127.0.0.1" in said
        assert who_opens_tls(access.address, access.authority) is None


def test_a_certificate_of_another_name_is_told_from_that(
    kits: Kits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in(kits, host="127.0.0.2") as gateway:
        access = access_to(gateway, tmp_path, monkeypatch, {}, "127.0.0.2")
        for said in ask_both(access, tmp_path / "note"):
            assert f"the certificate of 127.0.0.2:{gateway.port} is not valid: IP address mismatch" in said


def test_a_site_that_the_server_does_not_let_in_hears_so(
    gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Kits.make(tmp_path / "other").site(tmp_path / "strange", gateway.port)
    access = access_to(gateway, tmp_path, monkeypatch, {}, "127.0.0.1")
    context = ssl.create_default_context(cafile=str(access.authority))
    context.load_cert_chain(other / "site.crt", other / "site.key")
    strange = Access(access.site, access.key, context, access.address, access.authority, lambda: None)
    for said in ask_both(strange, tmp_path / "note"):
        assert "this site's certificate" in said
        assert "ask the coordinator" in said


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("http://", "not (a|the) URL"),
        ("http://proxy:port", "not (a|the) URL"),
        ("http://proxy:99999", "not (a|the) URL"),
        ("not a proxy", "not (a|the) URL"),
        ("http://[::1", "not (a|the) URL"),
        ("http://proxy/path", "not (a|the) URL"),
        ("https://secret:word@proxy:3128", "plain HTTP"),
        ("socks5://proxy:1080", "plain HTTP"),
    ],
)
def test_a_variable_that_is_no_proxy_is_refused(value: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        find_address("server.example.org", 443, {"HTTPS_PROXY": value})
    assert str(error.value).startswith("HTTPS_PROXY: write it as http://USER:PASSWORD@HOST:PORT")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "proxy:3128"}, Proxy("proxy", 3128)),
        ({"HTTPS_PROXY": "http://proxy"}, Proxy("proxy", 80)),
        ({"HTTPS_PROXY": "http://[::1]:3128/"}, Proxy("::1", 3128)),
        ({"HTTPS_PROXY": "http://a:b@upper:1", "https_proxy": "lower:2"}, Proxy("lower", 2, "https_proxy")),
        ({"HTTPS_PROXY": "http://upper:1", "https_proxy": ""}, None),
        ({"all_proxy": "http://all:1"}, Proxy("all", 1, "all_proxy")),
        ({"http_proxy": "http://plain:1"}, None),
        ({"HTTPS_PROXY": "http://u%40x:p%3Aq@proxy:1"}, Proxy("proxy", 1, "HTTPS_PROXY", "u@x", "p:q")),
        ({"HTTPS_PROXY": "proxy:1", "NO_PROXY": ".example.org"}, None),
        ({"HTTPS_PROXY": "proxy:1", "NO_PROXY": "*", "no_proxy": ""}, Proxy("proxy", 1)),
    ],
)
def test_what_the_environment_says(environment: dict[str, str], proxy: Proxy | None) -> None:
    assert find_address("server.example.org", 443, environment).proxy == proxy


def test_a_password_is_in_no_text() -> None:
    proxy = Proxy("proxy", 1, "HTTPS_PROXY", "alice", "secret")
    assert "secret" not in f"{proxy} {proxy!r}"
    assert find_address("server", 1, {"HTTPS_PROXY": proxy.url}).proxy == proxy


@pytest.mark.parametrize(
    ("host", "entries", "exempt"),
    [
        ("server.example.org", "example.org", True),
        ("server.example.org", ".example.org", True),
        ("server.example.org", "*.example.org", True),
        ("Server.Example.org", "SERVER.example.ORG", True),
        ("server.example.org", "server.example.org:443", True),
        ("server.example.org", "server.example.org:444", False),
        ("server.example.org", "ample.org", False),
        ("server.example.org", "other.org, , example.org", True),
        ("server.example.org", "", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "11.0.0.0/8", False),
        ("::1", "::1", True),
        ("::1", "[::1]:443", True),
        ("::1", "[::1]:444", False),
        ("fd00::5", "fd00::/8", True),
        ("anything", "*", True),
    ],
)
def test_exemptions(host: str, entries: str, exempt: bool) -> None:
    assert is_exempt(host, 443, entries) == exempt
