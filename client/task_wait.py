"""The runner's question for a task, answered when there is one: a change to Flower's SuperNode.

Flower answers at once that there is none, so whoever wants to begin soon has to ask often, and a question costs several
milliseconds at both ends. Here it waits in SuperNode for a while. Who asks is not checked before, only when the
question goes on its usual way; and it goes on only if somebody still waits for the answer, so that no task is given to
a runner that has ended. Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import asyncio
import time

from flwr.common.constant import Status
from flwr.supercore.dependencies.runtime import get_runtime_state
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from common.short_way import again, whole_body

ACQUIRE_TASK = "/v1/runtime/acquire-task"
LONGEST_WAIT_SECONDS = 1.0
SHORTEST_PAUSE_SECONDS = 0.02
SHARE_OF_WAIT = 0.02


class TaskWait:
    """ASGI middleware around SuperNode's application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._idle_since = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on, a question for a task when there is one or after a second."""
        if scope["type"] != "http" or scope["path"] != ACQUIRE_TASK:
            await self._app(scope, receive, send)
            return
        body = await whole_body(receive)
        if body is not None and await self._wait(Request(scope), receive):
            await self._app(scope, again(body, receive), send)

    async def _wait(self, request: Request, receive: Receive) -> bool:
        """Whether whoever asks is still there."""
        end = time.monotonic() + LONGEST_WAIT_SECONDS
        gone = asyncio.ensure_future(receive())
        try:
            while True:
                now = time.monotonic()
                if there_is_one := bool(get_runtime_state(request).get_tasks(statuses=[Status.PENDING])):
                    self._idle_since = now
                # As everywhere, pauses grow: a site that waits for hours looks no more than once a second.
                pause = max(SHORTEST_PAUSE_SECONDS, SHARE_OF_WAIT * (now - self._idle_since))
                over = there_is_one or now >= end
                if (await asyncio.wait({gone}, timeout=0 if over else min(pause, end - now)))[0]:
                    return False
                if over:
                    return True
        finally:
            gone.cancel()
