"""News reach open pages, and nothing piles up for those that do not listen."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from starlette.types import Message

from common.web.sessions import Sessions
from common.web.streams import MOST_STREAMS_OF_A_SESSION, News, Streams
from common.web.visits import Role, Session
from tests.common.web.loops import run
from tests.common.web.side import Clock

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/events", "headers": []}


class Browser:
    """An open page: takes lines until it has had ``wanted`` events, or never takes any."""

    def __init__(self, wanted: int = 1, on_line: Callable[[], None] = lambda: None, takes: bool = True) -> None:
        self.lines: list[str] = []
        self.status = 0
        self._wanted, self._on_line, self._takes = wanted, on_line, takes
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if not self._takes:
            await asyncio.Event().wait()
        self.lines.append(message["body"].decode())
        self._on_line()
        if sum("event:" in line for line in self.lines) >= self._wanted:
            self._left.set()


def opened(watch: Callable[[], Mapping[str, object]], read_seconds: float = 30.0) -> tuple[Streams, News, Session]:
    sessions = Sessions(Clock())
    session = sessions.find(sessions.open(Role.LOOK, "someone"))
    assert session is not None
    news = News(watch)
    return Streams(news, sessions, read_seconds), news, session


def test_a_page_hears_what_has_changed_since_it_was_made() -> None:
    marks = {"run-0": 1, "run-1": 1}

    async def visit() -> list[str]:
        streams, news, session = opened(lambda: dict(marks))
        await news.look()
        seen = news.now
        assert seen == 1, "the side could be asked"
        marks["run-1"] = 2
        page = Browser()
        await streams.answer(session, seen, SCOPE, page.receive, page.send)
        return page.lines

    assert [line for line in run(visit()) if line != ":\n\n"] == ["event: run-1\ndata: 2\n\n"]


def test_a_flood_of_changes_is_one_line_for_each_topic() -> None:
    async def visit() -> str:
        counts = {"n": 0}

        def watch() -> Mapping[str, object]:
            counts["n"] += 1
            return {"run-0": counts["n"]}

        streams, news, session = opened(watch)
        for _ in range(1000):
            await news.look()
        assert len(news._changed) == 1
        page = Browser()
        await streams.answer(session, 0, SCOPE, page.receive, page.send)
        return page.lines[0]

    assert run(visit()).count("event:") == 1


def test_a_browser_that_takes_nothing_is_dropped() -> None:
    async def visit() -> int:
        streams, _, session = opened(lambda: {"run-0": 1}, read_seconds=0.01)
        page = Browser(takes=False)
        await asyncio.wait_for(streams.answer(session, 0, SCOPE, page.receive, page.send), 20)
        return len(streams._open)

    assert run(visit()) == 0


@pytest.mark.parametrize("steps", range(6))
def test_a_browser_that_leaves_just_as_news_comes_has_gone(steps: int) -> None:
    async def visit() -> int:
        streams, news, session = opened(lambda: {"run-0": 1})
        page = Browser(wanted=99)
        answering = asyncio.create_task(streams.answer(session, 0, SCOPE, page.receive, page.send))
        while not page.lines:
            await asyncio.sleep(0.001)
        page._left.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        for waker in news._wakers:
            waker.set()
        await asyncio.wait_for(answering, 20)
        return len(streams._open)

    assert run(visit()) == 0


def test_an_older_look_never_wins() -> None:
    began, go_on = threading.Event(), threading.Event()
    answers = iter([1, 2])

    def watch() -> Mapping[str, object]:
        answer = next(answers)
        if answer == 1:
            began.set()
            go_on.wait(20)
        return {"run-0": answer}

    async def visit() -> object:
        news = News(watch)
        older = asyncio.create_task(news.look())
        while not began.is_set():
            await asyncio.sleep(0.001)
        newer = asyncio.create_task(news.look())
        await asyncio.wait([newer], timeout=0.1)
        go_on.set()
        await asyncio.gather(older, newer)
        return news._marks["run-0"]

    assert run(visit()) == 2


def test_a_session_has_so_many_streams_and_no_more() -> None:
    async def visit() -> tuple[int, int]:
        streams, news, session = opened(lambda: {"run-0": 1})
        pages = [Browser(wanted=9) for _ in range(MOST_STREAMS_OF_A_SESSION)]
        tasks = [asyncio.create_task(streams.answer(session, 0, SCOPE, page.receive, page.send)) for page in pages]
        await asyncio.sleep(0)
        late = Browser()
        await streams.answer(session, 0, SCOPE, late.receive, late.send)
        for page in pages:
            page._left.set()
        await asyncio.gather(*tasks)
        return late.status, len(news._wakers)

    assert run(visit()) == (503, 0)


def test_a_watch_that_fails_does_not_end_the_news_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def visit() -> int:
        answers = iter([OSError("gone"), OSError("gone"), {"run-0": 1}])

        def watch() -> Mapping[str, object]:
            answer = next(answers)
            if isinstance(answer, OSError):
                raise answer
            return answer

        _, news, _ = opened(watch)
        for _ in range(3):
            await news.look()
        return news.now

    with caplog.at_level(logging.ERROR, "fedvox.web"):
        assert run(visit()) == 1
    assert len(caplog.records) == 1
