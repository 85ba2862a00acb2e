from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from common.supervise import answers, free_port

PORTIONS = """
import asyncio, sys, uvicorn
from uvicorn.protocols.http import httptools_impl
from common.short_way import receive_whole_bodies
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    portions, size, more = 0, 0, True
    if scope["path"] == "/unread":
        await asyncio.sleep(60)
    while more:
        message = await receive()
        portions, size, more = portions + 1, size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{portions} {size}".encode()})
if sys.argv[2] == "whole":
    receive_whole_bodies(httptools_impl)
uvicorn.run(app, port=int(sys.argv[1]), http="httptools", lifespan="off", log_level="error")
"""


@contextmanager
def server(kind: str) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", PORTIONS, str(port), kind])
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["whole", "usual"])
def test_a_body_goes_through_at_once(kind: str) -> None:
    with server(kind) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        for size in (0, 10, 8 * 2**20, 40 * 2**20, 10):
            portions, received = map(int, client.post("/", content=bytes(size)).text.split())
            assert received == size
            if size <= 32 * 2**20:
                assert (portions == 1) is (kind == "whole" or size <= 10)
        streamed = client.post("/", content=(bytes(1000) for _ in range(100))).text.split()
        assert int(streamed[1]) == 100_000


@pytest.mark.parametrize("kind", ["whole", "usual"])
def test_a_body_that_nobody_asks_for_is_not_read(kind: str) -> None:
    size, sent = 30 * 2**20, 0
    with server(kind) as port, socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        with pytest.raises(TimeoutError):
            while sent < size:
                sent += connection.send(bytes(2**16))
    # What the kernel keeps for both ends of a connection.
    assert sent < 20 * 2**20
