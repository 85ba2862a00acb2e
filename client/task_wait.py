"""The runner's question for a task, answered by SuperNode when there is one (``common.held_question``).

Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.common.constant import Status
from flwr.supercore.dependencies.runtime import get_runtime_state
from starlette.requests import Request
from starlette.types import ASGIApp

from common.held_question import HeldQuestion

ACQUIRE_TASK = "/v1/runtime/acquire-task"


class TaskWait(HeldQuestion):
    """ASGI middleware around SuperNode's application."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, ACQUIRE_TASK, _look)


def _look(request: Request, body: bytes) -> Callable[[], bool]:
    del body
    state = get_runtime_state(request)
    return lambda: bool(state.get_tasks(statuses=[Status.PENDING]))
