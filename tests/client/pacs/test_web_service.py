"""Services that let a caller wait, or send too much."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from client.pacs.peer import PeerError
from client.pacs.web_service import WebService

OK = b"HTTP/1.1 200 OK\r\n"
TLS_RECORD = b"\x16\x03\x03\x40\x00\x02\x00\x3f\x00"
"""The beginning of a handshake that is 16,384 bytes long."""


@contextmanager
def server(answer: bytes, drips: bool = False) -> Iterator[int]:
    """Answer every connection with the same bytes, without reading; then, for some, drip."""
    ended = threading.Event()

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(answer)
            while drips and not ended.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=[listening])
        thread.start()
        yield listening.getsockname()[1]
        ended.set()
        thread.join()


def body_of(url: str, most_bytes: int = 1000, total_seconds: float = 20) -> bytes:
    service = WebService(url, None, "", 5, total_seconds)
    with service.calling() as calls, calls.call("GET", "/studies", {}) as response:
        return calls.read_body(response, most_bytes)


@pytest.mark.parametrize(
    ("scheme", "answer"),
    [
        ("https", TLS_RECORD),
        ("http", b"HTTP/1.1 200"),
        ("http", OK + b"X-Slow: "),
        ("http", OK + b"\r\n"),
        ("http", OK + b"Transfer-Encoding: chunked\r\n\r\n1;"),
    ],
)
def test_nobody_waits_for_bytes_that_come_one_by_one(scheme: str, answer: bytes) -> None:
    with server(answer, drips=True) as port, pytest.raises(PeerError, match="was not done after"):
        body_of(f"{scheme}://127.0.0.1:{port}", total_seconds=0.3)


def test_an_answer_is_read_up_to_a_limit() -> None:
    answer = OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000
    with server(answer) as port:
        assert body_of(f"http://127.0.0.1:{port}") == b"x" * 1000
    with server(answer) as port, pytest.raises(PeerError, match="more than 999 bytes"):
        body_of(f"http://127.0.0.1:{port}", most_bytes=999)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"identity, gzip"])
def test_a_compressed_answer_is_refused_before_it_is_read(encoding: bytes) -> None:
    with (
        server(OK + b"Content-Length: 1000000\r\nContent-Encoding: " + encoding + b"\r\n\r\n") as port,
        pytest.raises(PeerError, match="compresses its answers"),
    ):
        body_of(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "broke off"),
        (b"SSH-2.0-OpenSSH\r\n", "broke off"),
        (OK + b"Content-Length: 10\r\n\r\n", "broke off"),
        (OK + b"X: " + b"x" * 200_000, "broke off"),
    ],
)
def test_what_is_no_answer_is_told(answer: bytes, problem: str) -> None:
    with server(answer) as port, pytest.raises(PeerError, match=problem):
        body_of(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/rs", "http://no.such.host.invalid/rs"])
def test_a_service_that_is_not_there_is_told(url: str) -> None:
    with pytest.raises(PeerError, match="cannot be reached"):
        body_of(url)
