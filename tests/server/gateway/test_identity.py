"""A request counts once, for the site that signed it, as long as that site is let in."""

from __future__ import annotations

import base64
import http.client
import os
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from common.identity import BODY_HEADER, SIGNATURE_HEADER, SITE_HEADER, TIME_HEADER
from common.protocol.codec import pack
from common.protocol.messages import Heartbeat
from server.gateway.identity import Sites
from server.provisioning.certificate_authority import Authority
from tests.mutual_tls import write_site
from tests.server.gateway.lab import ABSENT, TASK, Lab, Reply, SiteClient, digest_of, lab, send, wait_for

PATH = f"/models/{ABSENT}"
ORDER = (
    39402006196394479212279040100143613805079739270465446667946905279627659399113263569398956308152294913554433653942643
)
"""Of the curve P-384."""


def told(found: Reply, word: str, status: int = 401) -> None:
    assert (found.status, found.word) == (status, word)


def shut_out(client: SiteClient, connection: http.client.HTTPConnection) -> None:
    """Expect a refusal on an open connection, or that the gateway has hung up on it already."""
    try:
        found = client.request("GET", PATH, connection=connection)
    except (ConnectionError, ssl.SSLError):
        return
    told(found, "unknown-site")


def test_a_signed_request_is_taken_once(gateway: Lab) -> None:
    north = gateway.client()
    for client, other in ((north, north.connect()), (gateway.client("south"), north.connect())):
        headers = client.signed("GET", PATH)
        assert send(client.connect(), "GET", PATH, headers).status == 404
        told(send(client.connect(), "GET", PATH, headers), "replayed")
        told(send(other, "GET", PATH, headers), "replayed")
    wait_for(lambda: gateway.refused("north", "replayed"), "what was refused")


def test_a_signature_in_another_form_is_no_second_request(gateway: Lab) -> None:
    """From (r, s) anybody can make (r, -s), which is as good."""
    north = gateway.client()
    headers = north.signed("GET", PATH)
    r, s = utils.decode_dss_signature(base64.b64decode(headers[SIGNATURE_HEADER]))
    other = headers | {SIGNATURE_HEADER: base64.b64encode(utils.encode_dss_signature(r, ORDER - s)).decode()}
    assert other != headers
    assert send(north.connect(), "GET", PATH, other).status == 404, "it is as good"
    told(send(north.connect(), "GET", PATH, headers), "replayed")


@pytest.mark.parametrize("seconds", [-600, 600, -301, 301, 10**10])
def test_a_clock_that_is_off_is_named(gateway: Lab, seconds: float) -> None:
    told(send(gateway.client().connect(), "GET", PATH, gateway.client().signed_at(seconds, "GET", PATH)), "clock")


@pytest.mark.parametrize("seconds", [-280, 0, 280])
def test_a_clock_that_is_a_little_off_is_not(gateway: Lab, seconds: float) -> None:
    assert send(gateway.client().connect(), "GET", PATH, gateway.client().signed_at(seconds, "GET", PATH)).status == 404


Change = Callable[[dict[str, str]], dict[str, str]]
CHANGES: dict[str, tuple[Change, str]] = {
    "another site's name": (lambda h: h | {SITE_HEADER: "south"}, "signature"),
    "the name of nobody": (lambda h: h | {SITE_HEADER: "nobody"}, "unknown-site"),
    "a name that leads elsewhere": (lambda h: h | {SITE_HEADER: "../sites/north"}, "unknown-site"),
    "no name": (lambda h: h | {SITE_HEADER: ""}, "unknown-site"),
    "another time": (lambda h: h | {TIME_HEADER: str(int(h[TIME_HEADER]) + 1)}, "signature"),
    "a time that is none": (lambda h: h | {TIME_HEADER: "now"}, "signature"),
    "a very long time": (lambda h: h | {TIME_HEADER: "1" * 400}, "signature"),
    "another body": (lambda h: h | {BODY_HEADER: ABSENT}, "signature"),
    "another range": (lambda h: h | {"range": "bytes=0-"}, "signature"),
    "no signature": (lambda h: {k: v for k, v in h.items() if k != SIGNATURE_HEADER}, "signature"),
    "an empty signature": (lambda h: h | {SIGNATURE_HEADER: ""}, "signature"),
    "a signature of no form": (lambda h: h | {SIGNATURE_HEADER: "%%"}, "signature"),
    "a signature of noise": (lambda h: h | {SIGNATURE_HEADER: base64.b64encode(os.urandom(100)).decode()}, "signature"),
    "nothing at all": (lambda _: {}, "signature"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_is_found_out(gateway: Lab, name: str) -> None:
    change, word = CHANGES[name]
    told(send(gateway.client().connect(), "GET", PATH, change(gateway.client().signed("GET", PATH))), word)


def test_method_and_path_are_signed(gateway: Lab) -> None:
    north = gateway.client()
    told(send(north.connect(), "GET", PATH, north.signed("HEAD", PATH)), "signature")
    told(send(north.connect(), "GET", PATH, north.signed("GET", PATH[:-1] + "c")), "signature")


def test_a_body_must_be_the_one_that_was_signed(gateway: Lab) -> None:
    north = gateway.client()
    beat = pack(Heartbeat((TASK,), TASK, 1, 2)).encode()
    assert north.request("POST", "/heartbeat", beat).status == 204
    told(
        north.request("POST", "/heartbeat", beat.replace(b'"step":1', b'"step":2'), digest=digest_of(beat)), "signature"
    )
    last = gateway.folder.heartbeat("north")
    assert last is not None and last.beat.step == 1


def test_a_sign_of_life_is_kept_for_its_site(gateway: Lab) -> None:
    beat = Heartbeat((TASK, "ab" * 16), TASK, 3, 40)
    assert gateway.client("south").request("POST", "/heartbeat", pack(beat).encode()).status == 204
    last = gateway.folder.heartbeat("south")
    assert last is not None and last.beat == beat and abs(last.time - time.time()) < 30


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"{}", 400), (b"\xff", 400), (b"[" * 5000, 400), (b"x" * 8193, 413)]
)
def test_a_sign_of_life_that_is_none_is_refused(gateway: Lab, body: bytes, status: int) -> None:
    assert gateway.client().request("POST", "/heartbeat", body).status == status


def test_a_refused_request_ends_its_connection(gateway: Lab) -> None:
    north = gateway.client()
    connection = north.connect()
    assert send(connection, "GET", PATH, {}).headers["connection"] == "close"
    connection = north.connect()
    for _ in range(3):
        assert "connection" not in north.request("GET", PATH, connection=connection).headers


def test_revoking_takes_effect_at_once_also_on_an_open_connection(gateway: Lab) -> None:
    gateway.let_in("east")
    east = gateway.client("east")
    connection = east.connect()
    assert east.request("GET", PATH, connection=connection).status == 404
    gateway.revoke("east")
    shut_out(east, connection)
    told(east.request("GET", PATH), "unknown-site")
    gateway.let_in("east")
    assert east.request("GET", PATH).status == 404


def test_revoking_hangs_up_on_an_open_connection(gateway: Lab) -> None:
    gateway.let_in("east")
    east = gateway.client("east")
    connection = east.connect()
    assert east.request("GET", PATH, connection=connection).status == 404
    gateway.revoke("east")
    began = time.monotonic()
    connection.sock.settimeout(10)
    assert connection.sock.recv(1) == b""
    assert time.monotonic() - began < 5
    gateway.let_in("east")


def test_the_same_over_ipv6(tmp_path: Path) -> None:
    with lab(tmp_path, host="::1") as made:
        north = made.client()
        connection = north.connect()
        assert north.request("GET", PATH, connection=connection).status == 404
        made.revoke("north")
        connection.sock.settimeout(10)
        assert connection.sock.recv(1) == b""


def test_a_list_of_revoked_certificates_takes_effect_at_once(gateway: Lab) -> None:
    gateway.let_in("west")
    west = gateway.client("west")
    connection = west.connect()
    assert west.request("GET", PATH, connection=connection).status == 404
    found = Sites(gateway.kit).find("west")
    assert found is not None
    gateway.revoke_by_list(found.serial)
    shut_out(west, connection)
    told(west.request("GET", PATH), "unknown-site")
    assert gateway.client().request("GET", PATH).status == 404
    gateway.revoke_by_list()


def test_a_new_certificate_for_the_same_site_takes_the_place_of_the_old(gateway: Lab) -> None:
    gateway.let_in("east")
    old = gateway.client("east")
    assert old.request("GET", PATH).status == 404
    write_site(gateway.path / "east", gateway.authority, "east")
    gateway.let_in("east")
    told(old.request("GET", PATH), "signature")
    assert gateway.client("east").request("GET", PATH).status == 404


def test_only_so_many_requests_of_a_site_are_remembered(strict: Lab) -> None:
    """Those beyond are refused, or an old one could come again; other sites do not notice."""
    client = strict.client("south")
    connection = client.connect()
    answers = [client.request("GET", PATH, connection=connection).status for _ in range(70)]
    assert answers == [404] * 60 + [429] * 10
    assert strict.client("east").request("GET", PATH).status == 404


# Without a gateway.


@pytest.fixture
def kit(tmp_path: Path) -> Lab:
    (tmp_path / "lab").mkdir()
    return Lab(tmp_path / "lab")


def test_only_certificates_of_this_federation_and_this_name_count(kit: Lab, tmp_path: Path) -> None:
    sites = Sites(kit.kit)
    folder = kit.kit / "sites"
    assert sites.find("north") is not None
    (folder / "east.crt").write_bytes((folder / "north.crt").read_bytes())
    write_site(tmp_path / "stranger", Authority.create("other"), "west")
    (folder / "west.crt").write_bytes((tmp_path / "stranger/site.crt").read_bytes())
    (folder / "damaged.crt").write_bytes(b"nothing")
    (folder / "server.crt").write_bytes((kit.kit / "server.crt").read_bytes())
    for name in ("east", "west", "damaged", "server", "absent", "", "..", "north.crt", "NORTH"):
        assert sites.find(name) is None, name


def test_a_certificate_counts_in_its_time_only(kit: Lab, tmp_path: Path) -> None:
    for name, start in (("past", -100), ("future", 1)):
        write_site(tmp_path / name, kit.authority, name, start=datetime.now(UTC) + timedelta(days=start))
        (kit.kit / "sites" / f"{name}.crt").write_bytes((tmp_path / name / "site.crt").read_bytes())
        assert Sites(kit.kit).find(name) is None


def test_a_damaged_list_of_revoked_certificates_lets_nobody_in_again(kit: Lab) -> None:
    sites = Sites(kit.kit)
    north = sites.find("north")
    assert north is not None
    kit.revoke_by_list(north.serial)
    assert not sites.is_admitted(north)
    for content in (b"", b"nothing", Authority.create("other").revocation_list({})):
        (kit.kit / "ca.crl").write_bytes(content)
        assert sites.find("north") is None
    (kit.kit / "ca.crl").unlink()
    assert sites.find("north") is None
    assert sites.find("south") is not None
    kit.revoke_by_list()
    assert sites.find("north") is not None
