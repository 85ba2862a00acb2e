from __future__ import annotations

import subprocess
import sys
import time

import httpx
import pytest

from common.supervise import answers, free_port

PORTIONS = """
import sys, uvicorn
from uvicorn.protocols.http import httptools_impl
from common.short_way import receive_whole_bodies
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    portions, size, more = 0, 0, True
    while more:
        message = await receive()
        portions, size, more = portions + 1, size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{portions} {size}".encode()})
if sys.argv[2] == "whole":
    receive_whole_bodies(httptools_impl)
uvicorn.run(app, port=int(sys.argv[1]), http="httptools", lifespan="off", log_level="error")
"""


@pytest.mark.parametrize("kind", ["whole", "usual"])
def test_a_body_goes_through_at_once(kind: str) -> None:
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", PORTIONS, str(port), kind])
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for size in (0, 10, 8 * 2**20, 40 * 2**20, 10):
                portions, received = map(int, client.post("/", content=bytes(size)).text.split())
                assert received == size
                if size <= 32 * 2**20:
                    assert (portions == 1) is (kind == "whole" or size <= 10)
            streamed = client.post("/", content=(bytes(1000) for _ in range(100))).text.split()
            assert int(streamed[1]) == 100_000
    finally:
        server.kill()
        server.wait()
