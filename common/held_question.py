"""A question that waits for its answer: for those that somebody asks again and again until there is something.

Flower answers at once that there is nothing, so whoever wants to begin soon has to ask often, and a question costs
several milliseconds at both ends. Here it waits for a while. Who asks is not checked before, only when the question
goes on its usual way; and it goes on only if somebody still waits for the answer, so that nothing is given to a program
that has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from common.short_way import again, whole_body

LONGEST_WAIT_SECONDS = 1.0
SHORTEST_PAUSE_SECONDS = 0.02
SHARE_OF_WAIT = 0.02
LARGEST_QUESTION = 1024
"""Bytes; the usual ones have less than 100."""


class HeldQuestion:
    """ASGI middleware.

    Args:
        app: answers.
        path: of the question; with a body of more than ``LARGEST_QUESTION`` it does not wait.
        look: reads a question, once, and returns what tells whether there may be something by now for whoever asks.
            Both run in the event loop and must be quick, whoever wrote the question.
    """

    def __init__(self, app: ASGIApp, path: str, look: Callable[[Request, bytes], Callable[[], bool]]) -> None:
        self._app = app
        self._path = path
        self._look = look
        self._idle_since = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on, the question when there is something or after a second."""
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = await whole_body(receive)
        if body is not None and await self._wait(Request(scope), body, receive):
            await self._app(scope, again(body, receive), send)

    async def _wait(self, request: Request, body: bytes, receive: Receive) -> bool:
        """Whether whoever asks is still there."""
        if len(body) > LARGEST_QUESTION:
            return True
        is_there = self._look(request, body)
        end = time.monotonic() + LONGEST_WAIT_SECONDS
        gone = asyncio.ensure_future(receive())
        try:
            while True:
                now = time.monotonic()
                if there_is_one := is_there():
                    self._idle_since = now
                # As everywhere, pauses grow: after hours it looks no more than once a second.
                pause = max(SHORTEST_PAUSE_SECONDS, SHARE_OF_WAIT * (now - self._idle_since))
                over = there_is_one or now >= end
                if (await asyncio.wait({gone}, timeout=0 if over else min(pause, end - now)))[0]:
                    return False
                if over:
                    return True
        finally:
            gone.cancel()
