"""Flower's own client over our connections, against a real server."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.protobuf.client import ProtobufClient

from common import bulk_http
from common.bulk_http import speed_up, use_bulk_transport
from common.supervise import free_port
from server.authority import Authority

CONTENT = bytes(range(256)) * 4 * 4096


def compressed() -> tuple[dict[str, str], bytes]:
    content = PullObjectResponse(object_content=bytes(10**7)).SerializeToString()
    body = gzip.compress(content)
    return {"content-encoding": "gzip", "content-length": str(len(body))}, body


def long() -> tuple[dict[str, str], bytes]:
    body = PullObjectResponse(object_content=bytes(10**7)).SerializeToString()
    return {"content-length": str(len(body))}, body


def of_unknown_length() -> tuple[dict[str, str], bytes]:
    return {"connection": "close"}, long()[1]


BOMBS = {"compressed": compressed, "long": long, "of unknown length": of_unknown_length}


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    headers_of_last: ClassVar[dict[str, str]] = {}

    def do_POST(self) -> None:
        Answering.headers_of_last = {name.lower(): value for name, value in self.headers.items()}
        request = PullObjectRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        if request.object_id == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if request.object_id in BOMBS:
            headers, body = BOMBS[request.object_id]()
            self.send_response(200)
            for header in headers.items():
                self.send_header(*header)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)
            self.close_connection = True
            return
        status = int(request.object_id) if request.object_id.isdecimal() else 200
        body = PullObjectResponse(object_content=CONTENT).SerializeToString()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(client: ProtobufClient, what: str) -> bytes:
    answer = client._unary_unary(
        path="/pull", rpc_method="Pull", request=PullObjectRequest(object_id=what), response_type=PullObjectResponse
    )
    return bytes(answer.object_content)


def connected(port: int, scheme: str = "http", verify: ssl.SSLContext | bool = False) -> ProtobufClient:
    client = ProtobufClient(f"{scheme}://127.0.0.1:{port}", verify=verify)
    speed_up(client, verify)
    return client


def test_answers_come_whole_over_connections_that_stay(server: ThreadingHTTPServer) -> None:
    client = connected(server.server_port)
    assert all(ask(client, "a piece") == CONTENT for _ in range(5))
    client.close()


@pytest.mark.parametrize("status", [400, 401, 413, 503])
def test_a_refusal_is_raised_as_httpx_would(server: ThreadingHTTPServer, status: int) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        ask(connected(server.server_port), str(status))
    assert caught.value.response.status_code == status


def test_a_line_that_breaks_is_an_error_of_httpx_and_the_next_call_connects_anew(server: ThreadingHTTPServer) -> None:
    client = connected(server.server_port)
    ask(client, "a piece")
    with pytest.raises(httpx.TransportError):
        ask(client, "hang up")
    assert ask(client, "a piece") == CONTENT


def test_headers_tell_no_more_of_a_site_than_flowers_own(server: ThreadingHTTPServer) -> None:
    ask(connected(server.server_port), "a piece")
    assert set(Answering.headers_of_last) == {
        *("host", "connection", "content-length", "content-type", "accept"),
        *("accept-encoding", "user-agent"),
    }
    assert Answering.headers_of_last["user-agent"] == "fedvox"


def test_nobody_there_is_a_connect_error() -> None:
    with pytest.raises(httpx.ConnectError):
        ask(connected(free_port()), "a piece")


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_answer_that_is_or_becomes_too_large_is_not_taken(
    bomb: str, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connected(server.server_port)
    if bomb != "compressed":
        assert len(ask(client, bomb)) == 10**7
    monkeypatch.setattr(bulk_http, "LARGEST_ANSWER", 5 * 10**6)
    with pytest.raises(httpx.DecodingError, match="too large"):
        ask(client, bomb)
    assert ask(client, "a piece") == CONTENT


@pytest.fixture
def authorities() -> tuple[Authority, Authority]:
    return Authority.create("ours"), Authority.create("another")


def test_only_the_right_certificate_is_accepted(
    server: ThreadingHTTPServer, tmp_path: Path, authorities: tuple[Authority, Authority]
) -> None:
    ours, other = authorities
    issued = ours.issue(["127.0.0.1"], 30)
    (tmp_path / "key").write_bytes(issued.key)
    (tmp_path / "certificate").write_bytes(issued.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)

    def trusting(authority: Authority) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.load_verify_locations(cadata=authority.pem.decode())
        return made

    assert ask(connected(server.server_port, "https", trusting(ours)), "a piece") == CONTENT
    with pytest.raises(httpx.ConnectError, match="certificate"):
        ask(connected(server.server_port, "https", trusting(other)), "a piece")


def test_clients_that_are_made_later_use_it_too(server: ThreadingHTTPServer) -> None:
    class Client(ProtobufClient):
        """Flower's, so that the change stays in this test."""

    use_bulk_transport(Client)
    client = Client.from_server_address(f"127.0.0.1:{server.server_port}", True, None, [])
    assert ask(client, "a piece") == CONTENT
    assert "bulk_http" in type(client._client._transport).__module__
