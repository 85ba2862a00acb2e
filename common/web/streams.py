"""News to open pages, as server-sent events: only which topics have news, never what. The page then asks for itself.

However many events come, what waits for a browser is at most one mark for each topic, so nothing grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from common.web.sessions import Sessions
from common.web.visits import Session

LOOK_SECONDS = 0.75
"""How often the side is asked for news."""
QUIET_SECONDS = 15.0
"""After so long without news, a line that says nothing tells whether the browser is there."""
READ_SECONDS = 30.0
"""A browser that has not taken a line after so long is dropped."""
MOST_STREAMS = 64
MOST_STREAMS_OF_A_SESSION = 12
_logger = logging.getLogger("fedvox.web")


class News:
    """What has changed since when, by topic, and who wants to know.

    Parameters
    ----------
    watch
        As ``Side.watch``.

    Attributes
    ----------
    now
        Number of the last change; a page that is made now has seen everything up to it.
    """

    def __init__(self, watch: Callable[[], Mapping[str, object]]) -> None:
        self._watch = watch
        self._marks: Mapping[str, object] = {}
        self._changed: dict[str, int] = {}
        self._wakers: set[asyncio.Event] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._one_look = asyncio.Lock()
        self._is_blind = False
        self.now = 0

    async def look(self) -> None:
        """Ask the side for news, and wake the streams if there is any; one look at a time, or an older one wins."""
        async with self._one_look:
            try:
                marks = await run_in_threadpool(self._watch)
            except Exception:  # whatever it is, it must not end the watch: the pages would stand still
                if not self._is_blind:
                    _logger.exception("cannot see whether there is news")
                self._is_blind = True
                return
            self._is_blind = False
            self._compare(marks)

    def _compare(self, marks: Mapping[str, object]) -> None:
        changed = [topic for topic, mark in marks.items() if self._marks.get(topic, self) != mark]
        self._marks = marks
        if changed:
            self.now += 1
            self._changed = {topic: self._changed.get(topic, 0) for topic in marks} | dict.fromkeys(changed, self.now)
            for waker in self._wakers:
                waker.set()

    def since(self, seen: int) -> list[str]:
        """Return the topics that have changed since."""
        return [topic for topic, number in self._changed.items() if number > seen]

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Keep watching during the block, and set the event that it gets whenever something changes."""
        waker = asyncio.Event()
        self._wakers.add(waker)
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch_on())
        try:
            yield waker
        finally:
            self._wakers.discard(waker)
            if not self._wakers and self._watcher is not None:
                self._watcher.cancel()
                self._watcher = None

    async def _watch_on(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)


class Streams:
    """All open streams of one server."""

    def __init__(self, news: News, sessions: Sessions, read_seconds: float = READ_SECONDS) -> None:
        self._news = news
        self._sessions = sessions
        self._read_seconds = read_seconds
        self._open: list[Session] = []

    async def answer(self, session: Session, seen: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream news to a browser that has seen everything up to ``seen``, until one of both has enough."""
        if len(self._open) >= MOST_STREAMS or self._open.count(session) >= MOST_STREAMS_OF_A_SESSION:
            busy = PlainTextResponse("too many pages are open\n", HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "30"})
            await busy(scope, receive, send)
            return
        self._open.append(session)
        try:
            tasks = asyncio.create_task(_gone(receive)), asyncio.create_task(self._tell(session, seen, send))
            _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._open.remove(session)

    async def _tell(self, session: Session, seen: int, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._news.look()
        with self._news.listening() as waker, contextlib.suppress(TimeoutError):
            while self._sessions.is_open(session):
                waker.clear()
                topics, seen = self._news.since(seen), self._news.now
                text = "".join(f"event: {topic}\ndata: {seen}\n\n" for topic in topics) or ":\n\n"
                # Not ``wait_for``, which in Python 3.11 ignores that a browser has gone if news come in just then.
                async with asyncio.timeout(self._read_seconds):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET_SECONDS):
                        await waker.wait()
            async with asyncio.timeout(self._read_seconds):
                await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
