"""A question for a task to SuperNode's own application, on its own state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from client.task_wait import ACQUIRE_TASK, TaskWait
from common import held_question

RUN = 7
QUESTION = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]).SerializeToString()


class SuperNode:
    """Its application behind the wait, and who talks to it."""

    def __init__(self) -> None:
        states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state: Any = states.state()
        self.app = create_app(states)
        self.app.add_middleware(TaskWait)
        self.came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answered: list[dict[str, Any]] = []

    def ask(self, path: str = ACQUIRE_TASK) -> Awaitable[None]:
        """A request, in two portions."""
        context = SimpleNamespace(request=httpx.Request("POST", "http://x"))
        interceptor: Any = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
        interceptor.intercept(context, lambda _: httpx.Response(200))
        headers = {"content-type": PROTOBUF_MEDIA_TYPE} | dict(context.request.headers)
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2), "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }  # fmt: skip
        self.came = asyncio.Queue()  # it belongs to one event loop
        self.came.put_nowait({"type": "http.request", "body": QUESTION[:1], "more_body": True})
        self.came.put_nowait({"type": "http.request", "body": QUESTION[1:], "more_body": False})

        async def send(event: Any) -> None:
            self.answered.append(event)

        return self.app(scope, self.came.get, send)

    def answer(self) -> AcquireTaskResponse:
        assert self.answered[0]["status"] == 200, self.answered
        return AcquireTaskResponse.FromString(b"".join(event.get("body", b"") for event in self.answered[1:]))


def timed(work: Callable[[], Awaitable[None]]) -> float:
    began = time.monotonic()
    asyncio.run(_run(work))
    return time.monotonic() - began


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def test_a_task_that_comes_later_is_given_at_once() -> None:
    node = SuperNode()

    async def work() -> None:
        asked = asyncio.ensure_future(node.ask())
        await asyncio.sleep(0.2)
        assert not asked.done()
        node.state.create_task(TaskType.CLIENT_APP, RUN)
        await asyncio.wait_for(asked, held_question.LONGEST_WAIT_SECONDS - 0.3)

    timed(work)
    assert node.answer().task.run_id == RUN
    assert node.answer().token


def test_without_a_task_the_answer_comes_after_a_second() -> None:
    node = SuperNode()
    assert timed(node.ask) >= held_question.LONGEST_WAIT_SECONDS
    assert not node.answer().token


def test_no_task_is_given_to_a_runner_that_is_gone() -> None:
    node = SuperNode()

    async def work() -> None:
        asked = asyncio.ensure_future(node.ask())
        await asyncio.sleep(0.1)
        node.came.put_nowait({"type": "http.disconnect"})
        await asked

    assert timed(work) < held_question.LONGEST_WAIT_SECONDS
    node.state.create_task(TaskType.CLIENT_APP, RUN)
    assert node.answered == []
    timed(node.ask)
    assert node.answer().token


def test_a_task_that_comes_with_the_end_of_the_runner_stays() -> None:
    node = SuperNode()
    node.state.create_task(TaskType.CLIENT_APP, RUN)

    async def work() -> None:
        asked = asyncio.ensure_future(node.ask())
        node.came.put_nowait({"type": "http.disconnect"})
        await asked

    timed(work)
    node.answered.clear()
    timed(node.ask)
    assert node.answer().token


@pytest.mark.parametrize("path", ["/v1/runtime/pull-task-input", "/v1/runtime/acquire-tasks"])
def test_nothing_else_waits(path: str) -> None:
    node = SuperNode()
    assert timed(lambda: node.ask(path)) < held_question.LONGEST_WAIT_SECONDS
    assert node.answered[0]["status"] >= 400
