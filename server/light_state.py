"""What SuperLink's database is spared: bookkeeping that costs a transaction per request and that nobody here reads.

Flower looks for tasks whose process has died whenever it is asked for the state of a run, that is with every piece of
a model; and it counts the bytes of every piece in the database. Here it looks once a second, and counts nothing: what
a site sent and got stands in the audit logs. Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import threading
import time
from typing import Any

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

LOOK_SECONDS = 1.0


def lighten(state: type[SqlLinkState]) -> None:
    """Changes a class of Flower's as described above."""
    clean_up = state._cleanup_expired_task_tokens
    lock, looked = threading.Lock(), float("-inf")

    def clean_up_at_times(self: SqlLinkState) -> None:
        nonlocal looked
        with lock:
            now = time.monotonic()
            if now - looked < LOOK_SECONDS:
                return
            looked = now
        clean_up(self)

    def count_nothing(self: SqlLinkState, *arguments: Any, **options: Any) -> None:
        pass

    state._cleanup_expired_task_tokens = clean_up_at_times  # type: ignore[method-assign,assignment]
    state.store_traffic = count_nothing  # type: ignore[method-assign]
