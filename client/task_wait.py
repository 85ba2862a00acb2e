"""The runner's question for a task, answered by SuperNode when there is one (``common.held_question``).

Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

from flwr.common.constant import Status
from flwr.supercore.dependencies.runtime import get_runtime_state
from starlette.requests import Request
from starlette.types import ASGIApp

from common.held_question import HeldQuestion

ACQUIRE_TASK = "/v1/runtime/acquire-task"


class TaskWait(HeldQuestion):
    """ASGI middleware around SuperNode's application."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, ACQUIRE_TASK, _is_task_there)


def _is_task_there(request: Request, body: bytes) -> bool:
    del body
    return bool(get_runtime_state(request).get_tasks(statuses=[Status.PENDING]))
