"""Messages for the runner, piece by piece as they come: a change to Flower's SuperNode.

Flower pulls the whole message before it stores the first piece, and the runner asks again and again meanwhile. Here
every piece is stored as soon as it is there, and a question for one that is on its way is answered when it has come.
Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from common.parts import check_named
from common.short_way import Answer

LONGEST_WAIT_SECONDS = 1.0


class Arrivals:
    """Tells those who wait for a piece that one has come."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    @property
    def count(self) -> int:
        """How many have come."""
        return self._count

    def note(self) -> None:
        """One has come."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, known: int, seconds: float) -> None:
        """Until there are more than ``known``, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._count > known, seconds)


def store_pieces_as_they_come(module: ModuleType, arrivals: Arrivals) -> None:
    """Lets SuperNode put every piece of a message into its store at once.

    Args:
        module: ``flwr.supernode.start_client_internal``.
        arrivals: is told.
    """
    pull_and_store, pull_objects = module._pull_and_store_message, module.pull_objects

    def pull_and_store_at_once(*, object_store: Any, **others: Any) -> int | None:
        def pull(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **options: Any) -> dict[str, bytes]:
            def pull_one(identity: str) -> bytes:
                content = pull_object_fn(identity)
                check_named(identity, content)
                object_store.put(identity, content)
                arrivals.note()
                return b""

            # What comes from the server is checked here. What comes from the runner has got its name a moment ago.
            object_store.verify = False
            pull_objects(object_ids, pull_one, **options)
            return {}  # nothing is left to be stored

        module.pull_objects = pull  # type: ignore[attr-defined]
        run: int | None = pull_and_store(object_store=object_store, **others)
        return run

    module._pull_and_store_message = pull_and_store_at_once  # type: ignore[attr-defined]


def answer_when_there(answer: Answer, arrivals: Arrivals) -> Answer:
    """What answers a question for a piece that is on its way when it has come, or after a second.

    Args:
        answer: to ``pull-object``; who asks is checked every time.
        arrivals: of pieces.
    """

    def of(request: Any, content: Any) -> Any:
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        while True:
            known = arrivals.count
            result: Any = answer(request, content)
            left = deadline - time.monotonic()
            if result.object_available or not result.object_found or left <= 0:
                return result
            arrivals.wait(known, left)

    return of
