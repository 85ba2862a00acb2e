"""Connections that ask nothing, never end, or are too many of one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from common.web.connections import MOST_OF_AN_ADDRESS, REQUEST_SECONDS, Connection
from tests.common.web.loops import run

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n"
"""Of a request whose body comes never."""


@dataclass
class Wait:
    """Something that happens later, unless it is cancelled."""

    seconds: float
    function: Callable[[], None]
    holds: bool = True

    def cancel(self) -> None:
        self.holds = False


class Loop:
    """The event loop, whose waits a test sees and ends itself."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []

    def call_later(self, seconds: float, function: Callable[[], None]) -> Wait:
        self.waits.append(Wait(seconds, function))
        return self.waits[-1]

    def create_task(self, work: Coroutine[Any, Any, None], **options: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, **options)

    def patience(self) -> list[Wait]:
        return [wait for wait in self.waits if wait.holds and wait.seconds == REQUEST_SECONDS]


class Line(asyncio.Transport):
    """A connection of a machine."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 5000), "sockname": ("192.0.2.1", 8750)})
        self.is_aborted, self.written = False, b""

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.abort()

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.is_aborted

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def new_connection(state: ServerState, address: str = "192.0.2.7") -> tuple[Connection, Line, Loop]:
    config = uvicorn.Config(PlainTextResponse("here"), http=Connection, ws="none", log_config=None)
    config.load()
    loop, line = Loop(), Line(address)
    connection = Connection(config, state, {}, cast(Any, loop))
    connection.connection_made(line)
    return connection, line, loop


def test_one_machine_does_not_take_all_connections() -> None:
    async def kept(address: str) -> int:
        state = ServerState()
        return sum(not new_connection(state, address)[1].is_aborted for _ in range(MOST_OF_AN_ADDRESS + 10))

    assert run(kept("192.0.2.7")) == MOST_OF_AN_ADDRESS
    assert run(kept("127.0.0.1")) == MOST_OF_AN_ADDRESS + 10


def test_bytes_that_make_no_request_win_no_time() -> None:
    async def visit() -> None:
        connection, line, loop = new_connection(ServerState())
        (first,) = loop.patience()
        for byte in HEAD[:-1]:
            connection.data_received(bytes([byte]))
            assert loop.patience() == [first]
        connection.data_received(HEAD[-1:])
        assert not loop.patience(), "now it is the page's turn"
        while b"here" not in line.written:
            await asyncio.sleep(0)
        (second,) = loop.patience()
        connection.data_received(b"x" * 100)
        assert loop.patience() == [second], "the rest of a request that was answered"
        second.function()
        assert line.is_aborted
        connection.connection_lost(None)
        assert not loop.patience()

    run(visit())


def test_requests_one_after_another_have_time_each() -> None:
    async def visit() -> None:
        connection, line, loop = new_connection(ServerState())
        for number in range(1, 4):
            connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not loop.patience()
            while line.written.count(b"here") < number:
                await asyncio.sleep(0)
            assert len(loop.patience()) == 1

    run(visit())


def test_a_head_without_end_is_refused() -> None:
    async def visit() -> bytes:
        connection, line, _ = new_connection(ServerState())
        connection.data_received(b"GET / HTTP/1.1\r\n")
        for _ in range(100):
            connection.data_received(b"X: " + b"x" * 1000 + b"\r\n")
            if line.written:
                break
        return line.written

    assert b" 400 " in run(visit())
