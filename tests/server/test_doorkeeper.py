"""Before SuperLink's own application: whose body is read, and how many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from flwr.proto import message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from starlette.types import Message as Event

from server.doorkeeper import AT_A_TIME, SMALL_BODY
from tests.server.superlink_apps import Key, Link, apps, link

__all__ = ["apps", "link"]

PUSH = "/v1/fleet/push-object"


class Sender:
    """One request that comes as slowly as the test wants; ``read``: how often its body was asked for."""

    def __init__(self, link: Link, headers: dict[str, str], path: str = PUSH) -> None:
        self.read = 0
        self.status = 0
        self.goes_on = asyncio.Event()
        self._app = link.ours.app
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
            "server": ("localhost", 443),
            "scheme": "https",
        }

    async def send(self, body: bytes = b"") -> None:
        async def receive() -> Event:
            self.read += 1
            await self.goes_on.wait()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(event: Event) -> None:
            self.status = event.get("status", self.status)

        await self._app(self._scope, receive, send)


def content(link: Link, size: int = 2 * SMALL_BODY) -> Any:
    return message_pb2.PushObjectRequest(
        node=Node(node_id=link.node), run_id=link.run, object_id="0" * 64, object_content=bytes(size)
    )


def signed(link: Link, key: Key | None = None, **more: str) -> dict[str, str]:
    message = content(link)
    return link.headers(PUSH, message, key) | {"content-length": str(message.ByteSize())} | more


STRANGERS: dict[str, Callable[[Link], dict[str, str]]] = {
    "nobody": lambda link: {"content-length": "100000"},
    "nobody, in chunks": lambda link: {"transfer-encoding": "chunked"},
    "nobody, in chunks and with a length": lambda link: {"content-length": "1", "transfer-encoding": "chunked"},
    "an unknown key": lambda link: signed(link, generate_key_pairs()[0]),
    "a known key and no signature of it": lambda link: signed(link) | {"flwr-signature": "AAAA"},
    "a known key and the signature of another time": lambda link: (
        signed(link) | {"flwr-timestamp": "2026-01-01T00:00:00+00:00"}
    ),
    "no key but something else": lambda link: signed(link) | {"flwr-public-key": "%%%"},
}


@pytest.mark.parametrize("path", [PUSH, "/v1/fleet/activate-node", "/v1/fleet/get-run"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_of_a_stranger_no_large_body_is_read(stranger: str, path: str, link: Link) -> None:
    async def ask() -> None:
        sender = Sender(link, STRANGERS[stranger](link), path)
        await asyncio.wait_for(sender.send(), 20)
        assert (sender.status, sender.read) == (401, 0)

    asyncio.run(ask())


def test_a_sites_large_body_is_read_and_a_small_one_of_anybody(link: Link) -> None:
    message = content(link)
    assert link.ours.post(PUSH, headers=link.headers(PUSH, message), content=message.SerializeToString()).is_success
    refused = link.ours.post(PUSH, content=b"")
    assert refused.status_code == link.flower.post(PUSH, content=b"").status_code


def test_of_a_site_only_some_bodies_are_read_at_a_time(link: Link) -> None:
    async def ask() -> None:
        senders = [Sender(link, signed(link)) for _ in range(AT_A_TIME + 3)]
        body = content(link).SerializeToString()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for sender in senders:
                group.create_task(sender.send(body))
            while sum(sender.read for sender in senders) < AT_A_TIME:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            reading = [sender for sender in senders if sender.read]
            assert len(reading) == AT_A_TIME
            reading[0].goes_on.set()
            while sum(1 for sender in senders if sender.read) == AT_A_TIME:
                await asyncio.sleep(0.02)
            for sender in senders:
                sender.goes_on.set()
        assert {sender.status for sender in senders} == {200}

    asyncio.run(ask())
