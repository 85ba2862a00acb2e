"""What one site, or whoever holds its certificate, takes of the gateway, the others still have."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node as ProtoNode

from server.gateway.refusals import LINES_PER_SECOND, NOBODY, Refusals, RefusedError
from tests.server.gateway.lab import ABSENT, Lab, SiteClient, digest_of, wait_for
from tests.server.gateway.node import Node, write_nodes

PATH = f"/models/{ABSENT}"


def head_of(
    client: SiteClient, method: str = "GET", path: str = PATH, more: str = "", digest: str | None = None
) -> bytes:
    signed = client.signed(method, path, digest or digest_of(b""))
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{lines}{more}\r\n".encode()


@contextmanager
def sockets(client: SiteClient, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(client.socket()) for _ in range(count)]


def seconds_of_a_request(client: SiteClient) -> float:
    began = time.monotonic()
    assert client.request("GET", PATH).status == 404
    return time.monotonic() - began


def test_others_are_served_beside_200_connections_on_which_nothing_comes(gateway: Lab) -> None:
    with sockets(gateway.client("south"), 200):
        assert seconds_of_a_request(gateway.client("north")) < 5
        assert seconds_of_a_request(gateway.client("south")) < 5


def test_others_are_served_beside_200_unfinished_requests(gateway: Lab) -> None:
    south = gateway.client("south")
    with sockets(south, 200) as connections:
        for connection in connections:
            connection.sendall(b"POST /heartbeat HTTP/1.1\r\nhost: x\r\n")
        assert seconds_of_a_request(gateway.client("north")) < 5


def test_others_are_served_beside_200_connections_without_a_handshake(gateway: Lab) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        assert seconds_of_a_request(gateway.client("north")) < 5


def test_a_site_has_so_many_connections_and_no_more(strict: Lab) -> None:
    east = strict.client("east")
    wait_for(lambda: east.request("GET", PATH).status == 404, "an end to earlier connections")
    with ExitStack() as stack:
        answers = []
        for _ in range(12):
            connection = stack.enter_context(contextlib.closing(east.connect()))
            answers.append(east.request("GET", PATH, connection=connection).status)
        assert set(answers[:8]) <= {404, 429} and answers[8:] == [429] * 4, answers
        assert strict.client("north").request("GET", PATH).status == 404
    wait_for(lambda: east.request("GET", PATH).status == 404, "room for another")


def test_a_site_has_sixteen_requests_open_and_no_more(gateway: Lab) -> None:
    """Here: bodies that have not come yet."""
    south = gateway.client("south")
    with sockets(south, 16) as connections:
        for number, connection in enumerate(connections):
            beat = f"{number:02}".encode()
            connection.sendall(
                head_of(south, "POST", "/heartbeat", "content-length: 2\r\n", digest_of(beat)) + beat[:1]
            )
        wait_for(lambda: south.request("GET", PATH).status == 429, "a site that has too many")
        assert seconds_of_a_request(gateway.client("north")) < 5
    wait_for(lambda: south.request("GET", PATH).status == 404, "room for another")


def test_questions_that_wait_count_too(gateway: Lab) -> None:
    """And none of them waits at a SuperLink that is not there."""
    write_nodes(gateway.run, {"south": 5})
    node = Node(gateway.client("south"), 5)
    threads = []
    statuses = []

    def ask() -> None:
        request = PullMessagesRequest(node=ProtoNode(node_id=5))
        statuses.append(node.call("pull-messages", request, {"prefer": "wait=20"}).status)

    for _ in range(20):
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
    for thread in threads:
        thread.join(20)
    assert len(statuses) == 20 and set(statuses) <= {503, 429}


@pytest.mark.parametrize("size", [1_000_000, 3_000_000])
def test_a_header_of_a_megabyte_is_refused(gateway: Lab, size: int) -> None:
    before = gateway.memory()
    north = gateway.client()
    for _ in range(5):
        found = north.raw(head_of(north, more="x: " + "a" * size + "\r\n"))
        assert found[9:12] == b"431" or not found
    many = "".join(f"x-{number}: a\r\n" for number in range(size // 10))
    assert north.raw(head_of(north, more=many))[9:12] in (b"431", b"400", b"")
    assert seconds_of_a_request(north) < 5
    assert gateway.memory() - before < 10


def test_a_very_long_path_is_refused(gateway: Lab) -> None:
    north = gateway.client()
    assert north.raw(head_of(north, path="/models/" + "a" * 100_000))[9:12] in (b"414", b"431", b"404")


def test_a_small_body_that_stops_is_ended(strict: Lab) -> None:
    with strict.client("north").socket() as connection:
        north = strict.client("north")
        connection.sendall(head_of(north, "POST", "/heartbeat", "content-length: 100\r\n") + b"{")
        began = time.monotonic()
        assert connection.recv(1000)[9:12] == b"408"
        assert time.monotonic() - began < 5


def test_what_was_refused_is_counted_and_told(gateway: Lab) -> None:
    before = gateway.refused("south", "task"), gateway.refused(NOBODY, "signature")
    south = gateway.client("south")
    for _ in range(3):
        assert south.request("HEAD", f"/updates/{ABSENT[:32]}/{ABSENT}").status == 404
        south.raw(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    wait_for(lambda: gateway.refused("south", "task") == before[0] + 3, "the counts")
    assert gateway.refused(NOBODY, "signature") >= before[1] + 3
    assert "south: HEAD /updates/" in gateway.log() or "more requests were refused" in gateway.log()


def test_the_log_is_not_flooded_and_cannot_be_forged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fedvox.gateway")
    refusals = Refusals(tmp_path / "refused.json")
    for number in range(1000):
        refusals.count("north", RefusedError(404, "path"), "GET", f"/{number}\nsouth: GET / is fine\x1b[2J")
    lines = [record.getMessage() for record in caplog.records]
    assert LINES_PER_SECOND <= len(lines) <= 3 * LINES_PER_SECOND
    assert not any(character in line for line in lines for character in "\n\x1b")
    time.sleep(1.1)
    refusals.save()
    assert "more requests were refused" in caplog.records[-1].getMessage()


def test_counts_go_on_after_a_restart_and_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway/refused.json"
    for expected in (1, 2, 3):
        refusals = Refusals(file)
        refusals.count("north", RefusedError(404, "path"), "GET", "/")
        refusals.save()
        assert f'"path": {expected}' in file.read_text()
    for content in ("", "[]", '{"north": 1}', '{"north": {"path": "x"}}'):
        file.write_text(content)
        Refusals(file).count("north", RefusedError(404, "path"), "GET", "/")
