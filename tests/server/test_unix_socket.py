"""SuperLink's second listener, with uvicorn itself."""

from __future__ import annotations

import http.client
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from common.supervise import free_port
from server.unix_socket import listen_also_on, socket_path
from tests.e2e.network_federation import wait_for


class Connection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says what was asked for, and what the application's start left."""
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["started"] = "yes"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = f"{scope['scheme']} {scope['path']} {scope['state']['started']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def path() -> Iterator[Path]:
    with socket_path() as found:
        yield found
    assert not found.parent.exists()


@pytest.fixture
def port(path: Path) -> Iterator[int]:
    """A server on a port and on the socket."""

    class Both(uvicorn.Server):
        pass

    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()  # as after SIGKILL, the file stays
    listen_also_on(path, Both)
    number = free_port()
    server = Both(uvicorn.Config(echo, port=number, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 20, "the server")
    yield number
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def ask(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/where")
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer


def test_both_ways_lead_to_the_same_application(port: int, path: Path) -> None:
    assert ask(Connection(path)) == "http /where yes"
    assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) == "http /where yes"


def test_only_this_user_may_write_where_the_socket_is(port: int, path: Path) -> None:
    assert stat.S_ISSOCK(path.stat().st_mode)
    root = os.geteuid() == 0
    assert stat.S_IMODE(path.parent.stat().st_mode) == (0o711 if root else 0o700)
    assert stat.S_IMODE(path.stat().st_mode) == (0o666 if root else 0o600)
    assert len(str(path)) < 100


def test_a_server_that_cannot_start_does_not_listen(path: Path) -> None:
    class Both(uvicorn.Server):
        pass

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    listen_also_on(path, Both)
    server = Both(uvicorn.Config(broken, port=free_port(), log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert not path.exists()
