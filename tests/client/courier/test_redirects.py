"""A server that redirects a site elsewhere: the site speaks to nobody whom its kit does not name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.courier.connection import Access, client_context
from client.courier.errors import LineError
from client.courier.fleet_client import FleetNode
from client.courier.proxy import Address
from client.site.preflight import check_server
from common.certificates import site_identity
from common.config.kit import read_kit
from tests.client.courier.kits import Kits
from tests.client.courier.stand_in import StandIn, stand_in

CODES = (301, 302, 303, 307, 308)


@contextmanager
def redirected(kits: Kits, folder: Path, code: int) -> Iterator[tuple[StandIn, StandIn, Access]]:
    """A gateway that redirects every request to another one with a good certificate, and a site's access to it."""
    with stand_in(kits) as gateway, stand_in(kits) as elsewhere:
        kit = kits.site(folder / "kit", gateway.port)
        for each in (gateway, elsewhere):
            each.let_in(kit)
        for method in ("GET", "HEAD", "POST", "PATCH"):
            place = {"location": f"https://127.0.0.1:{elsewhere.port}/heartbeat"}
            gateway.add(method, ".*", times=99, status=code, headers=place)
        address = Address("127.0.0.1", gateway.port)
        key = site_identity(kit, "north").key
        yield gateway, elsewhere, Access("north", key, client_context(kit), address, kit / "ca.crt", lambda: None)


@pytest.mark.parametrize("code", CODES)
def test_flowers_calls_follow_no_redirect(kits: Kits, tmp_path: Path, code: int) -> None:
    with redirected(kits, tmp_path, code) as (gateway, elsewhere, access):
        node = FleetNode(access, tmp_path / "node")
        for call in (node.activate, node.pull, node.heartbeat):
            with pytest.raises(LineError, match=f"answers {code}, a redirect, which no site follows"):
                call()
        node.close()
        assert len(gateway.requests) == 3 and elsewhere.requests == []


@pytest.mark.parametrize("code", CODES)
def test_files_and_heartbeats_follow_no_redirect(kits: Kits, tmp_path: Path, code: int) -> None:
    with redirected(kits, tmp_path, code) as (gateway, elsewhere, access):
        for method, path, body in (
            ("GET", f"/models/{'0' * 64}", b""),
            ("PATCH", f"/updates/{'0' * 32}/{'0' * 64}", b"update"),
            ("POST", "/heartbeat", b"{}"),
        ):
            with access.connection() as connection:
                response = connection.request(method, path, {}, body)
                with pytest.raises(LineError, match=f"the server answers {code}"):
                    connection.check(response, "a request", 200)
        assert len(gateway.requests) == 3 and elsewhere.requests == []


def test_preflight_follows_no_redirect_and_says_so(kits: Kits, tmp_path: Path) -> None:
    with redirected(kits, tmp_path, 307) as (_, elsewhere, _access):
        items = {item.name: item for item in check_server(tmp_path / "kit", read_kit(tmp_path / "kit", "site"))}
        assert (items["access"].severity, "redirects" in items["access"].text) == ("warning", True)
        assert elsewhere.requests == []


def test_the_environment_sends_no_call_elsewhere(kits: Kits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(kits) as gateway, stand_in(kits) as elsewhere:
        kit = kits.site(tmp_path / "kit", gateway.port)
        gateway.let_in(kit)
        for name in ("HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{elsewhere.port}")
        key, address = site_identity(kit, "north").key, Address("127.0.0.1", gateway.port)
        node = FleetNode(
            Access("north", key, client_context(kit), address, kit / "ca.crt", lambda: None), tmp_path / "node"
        )
        with pytest.raises(LineError, match="the server answers 503"):
            node.pull()
        node.close()
        assert elsewhere.requests == []
