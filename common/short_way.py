"""A short way through Flower's HTTP servers for the requests that a round consists of.

SuperLink and SuperNode pass every request through up to nine layers, each with tasks, queues and threads of its own:
10 ms of CPU time or more, for a request whose work takes one. A round needs more than a hundred of them. Here such a
request is checked and answered in one go, by the very functions of Flower's that check and answer it at the end of the
long way. Whatever is not as it should be (who asks is not known, the request cannot be read, anything fails) takes
Flower's own way from the beginning, as if it had been sent again: only there is a request refused. Written for exactly
one version of Flower (``common.flower``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Self

from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.runtime import get_runtime_handlers, get_runtime_state, get_task
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES, ProtobufTranslationMiddleware
from google.protobuf.message import Message  # type: ignore[import-untyped]
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from common.large_objects import Buffer, frames_of, read_message

Answer = Callable[[Request, Any], Message]
LARGEST_WHOLE_BODY = 32 * 2**20
RUNTIME_METHODS = (
    "push-messages",
    "pull-messages",
    "push-object",
    "pull-object",
    "confirm-message-received",
    "get-nodes",
)


def runtime_answers(component: str) -> dict[str, Answer]:
    """What answers the hot requests of the runtime interface: path -> function.

    Args:
        component: ``SuperLink`` or ``SuperNode``.
    """
    check_version = VersionDependency(component_name=component, connection_name=f"Caller <-> {component} Runtime API")

    def answer(name: str) -> Answer:
        def of(request: Request, content: Message) -> Message:
            check_version(request)
            state = get_runtime_state(request)
            task = get_task(request, request.headers.get(TASK_TOKEN_HEADER), state)
            result: Message = getattr(get_runtime_handlers(request), name)(content, state, task)
            return result

        return of

    return {f"/v1/runtime/{method}": answer(method.replace("-", "_")) for method in RUNTIME_METHODS}


class ShortWay:
    """ASGI middleware, around all of Flower's.

    Args:
        app: the long way.
        answers: path -> what checks who asks and answers; raises whatever it likes.
    """

    def __init__(self, app: ASGIApp, answers: Mapping[str, Answer]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        answer = self._answers.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        request = Request(dict(scope) | {"state": dict(scope.get("state", {}))}, receive)
        body = await whole_body(receive)
        if body is None:
            return
        try:
            frames = await run_in_threadpool(_answer, answer, request, body)
        except Exception:  # of whatever kind: the long way tells it apart
            await self._app(scope, again(body, receive), send)
            return
        length, kind = str(sum(map(len, frames))).encode(), PROTOBUF_MEDIA_TYPE.encode()
        headers = [(b"content-length", length), (b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for left, frame in zip(reversed(range(len(frames))), frames, strict=True):
            await send({"type": "http.response.body", "body": frame, "more_body": left > 0})


def _answer(answer: Answer, request: Request, body: bytes) -> list[Buffer]:
    ProtobufTranslationMiddleware._check_request_media_type(request)
    content = read_message(PROTOBUF_REQUEST_TYPES["POST", request.url.path], body)
    request.state.protobuf_request = content
    return frames_of(answer(request, content))


async def whole_body(receive: Receive) -> bytes | None:
    """The body of a request; None if the connection broke."""
    portions, more = [], True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            return None
        portions.append(event.get("body", b""))
        more = event.get("more_body", False)
    return b"".join(portions)


def again(body: bytes, receive: Receive) -> Receive:
    """What delivers a body that was already received."""
    waiting = [body]

    async def deliver() -> Event:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return deliver


class Portions:
    """Stands in for ``bytearray`` where uvicorn gathers a body: what grows is a list, and the bytes are copied once."""

    def __init__(self) -> None:
        self._portions: list[bytes] = []
        self._size = 0

    def __iadd__(self, portion: bytes) -> Self:
        self._portions.append(portion)
        self._size += len(portion)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._portions)


def receive_whole_bodies(protocol: ModuleType) -> None:
    """Lets uvicorn hand over the body of a request when all of it is there, if it is no larger than 32 MiB.

    As before, no more than 64 KiB are read of a body that nobody has asked for.

    Args:
        protocol: ``uvicorn.protocols.http.httptools_impl``.
    """
    receive, pause = protocol.RequestResponseCycle.receive, protocol.FlowControl.pause_reading

    async def receive_whole(self: Any) -> Any:
        if self.more_body and not self.waiting_for_100_continue:
            self.flow.asked_for = True
            while self.more_body and not self.disconnected and len(self.body) <= LARGEST_WHOLE_BODY:
                self.flow.resume_reading()
                self.message_event.clear()
                await self.message_event.wait()
            self.flow.asked_for = False
            self.message_event.set()
        return await receive(self)

    def pause_unless_asked_for(self: Any) -> None:
        if not getattr(self, "asked_for", False):
            pause(self)

    protocol.bytearray = Portions  # type: ignore[attr-defined]
    protocol.RequestResponseCycle.receive = receive_whole
    protocol.FlowControl.pause_reading = pause_unless_asked_for
