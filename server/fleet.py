"""The hot requests of the interface that sites use, for SuperLink's short way (``common.short_way``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.superlink.dependencies.linkstate import get_linkstate
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import Message  # type: ignore[import-untyped]
from starlette.requests import Request

from common.short_way import Answer
from server.site_requests import admit_request

METHODS = ("pull-messages", "push-messages", "push-object", "pull-object", "confirm-message-received")
_WANT_STORE = ("pull-messages", "confirm-message-received")


def fleet_answers() -> dict[str, Answer]:
    """What answers them: path -> function, each after the check of who asks, and whether it may."""

    def answer(method: str) -> Answer:
        handle: Callable[..., Message] = getattr(fleet_handlers, method.replace("-", "_"))

        def of(request: Request, content: Message) -> Message:
            admit_request(request)
            state = get_linkstate(request)
            more: dict[str, Any] = {"store": state.object_store} if method in _WANT_STORE else {}
            return handle(request=content, state=state, **more)

        return of

    return {f"/v1/fleet/{method}": answer(method) for method in METHODS}
