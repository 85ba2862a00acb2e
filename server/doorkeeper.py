"""Lets nobody fill SuperLink's memory with bodies of requests.

Flower reads the whole body of a request before it looks who sends it, so whoever reaches the port could have it keep
20 MB for every connection that he opens, for as long as he likes. Here the body of a large request is not read before
its sender is known, and of one site no more than a few at a time. A small body costs no more than its connection does.
Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from types import SimpleNamespace

from fastapi import HTTPException, Request
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

SMALL_BODY = 65536
AT_A_TIME = 8


class Doorkeeper:
    """ASGI middleware, to be the outermost; what is around it must not read ahead (``common.short_way``)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._slots: dict[int, asyncio.Semaphore] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it without a look at its body."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/fleet/") or _is_small(Request(scope)):
            await self._app(scope, receive, send)
            return
        node = await run_in_threadpool(_sender, Request(dict(scope) | {"state": {}}))
        if node is None:
            refusal = JSONResponse({"detail": "Invalid SuperNode authentication"}, 401, {"connection": "close"})
            await refusal(scope, receive, send)
            return
        async with self._slots.setdefault(node, asyncio.Semaphore(AT_A_TIME)):
            await self._app(scope, receive, send)


def _is_small(request: Request) -> bool:
    length = request.headers.get("content-length", "0")
    # In chunks it may be of any length, whatever else is said of it.
    return "transfer-encoding" not in request.headers and length.isdecimal() and int(length) <= SMALL_BODY


def _sender(request: Request) -> int | None:
    """The node whose key has signed the time of a request, by Flower's own check; None if there is none."""
    try:
        key = b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        node = get_linkstate(request).get_node_id_by_public_key(key)
        if node is None:
            return None
        request.state.protobuf_request = SimpleNamespace(node_id=node)
        authenticate_node(request)
    except (KeyError, ValueError, binascii.Error, HTTPException):
        return None
    return node
