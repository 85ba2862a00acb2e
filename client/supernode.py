"""Starts Flower's SuperNode for a site: ``python -m client.supernode`` takes ``flower-supernode``'s options.

It differs from ``flower-supernode`` in eight ways, for each of which it reaches into a module of Flower; therefore it
runs with the version that it was written for and refuses any other.

Shorter pauses. SuperNode's main loop asks the server for a message, and if there is none sleeps for 3 s; while a task
is at work it looks for the reply every 0.5 s. Both times are constants in the code. With two messages a round they cost
more than all the rest of a short round: 1.9 s instead of 0.6 s with a small model. This launcher gives that one module
another ``time``, whose pauses start short and grow with the time waited (a fiftieth of it), and never grow beyond
Flower's own: a site that waits for hours asks no more often than before. The same for the pieces of a message that
are still on their way.

Its end. When SuperNode's main loop ends by an error, the thread of its runtime interface keeps the process alive
for ever, without a connection to the server. Here the process ends with its main loop, so that it can be restarted.

The app bundle of a run stays shut: SuperNode would read configuration out of it, for which there is no use here, and an
archive that somebody else has packed may be made to fill this machine's memory.

Continuity. See ``client.continuity``.

A broken line. See ``client.uplink``.

Downloads. See ``client.downlink``.

Waiting. See ``client.task_wait``.

Speed. The runner's requests go a short way through it (``common.short_way``), and its own over connections that do not
take pieces of a model apart (``common.bulk_http``).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from client.site_state import StateFolder
from common.flower import check_flower_version

STATE_VARIABLE = "FEDVOX_SITE_STATE"
"""Environment variable: the site's state folder."""
PULL_OBJECT = "/v1/runtime/pull-object"
SHARE_OF_WAIT = 0.02
SHORTEST_LOCAL_SECONDS = 0.02
SHORTEST_REMOTE_SECONDS = 0.05
LONGEST_LOCAL_PAUSE_SECONDS = 1.0


class Pace:
    """Stands in for the ``time`` module in ``flwr.supernode.start_client_internal``, which uses only ``sleep``.

    Flower sleeps 3 s between questions to the server, and 0.5 s while it waits for something on this machine. When
    one kind of wait follows the other, something has happened, and pauses start short again.

    Args:
        on_contact: called when the server has just answered that it has no message.
        clock, pause: of ``time``; to be replaced in tests.
        on_work: called while the runner works on a task.
    """

    def __init__(
        self,
        on_contact: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        on_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_contact = on_contact
        self._on_work = on_work
        self._clock = clock
        self._pause = pause
        self._kind = 0.0
        self._since = 0.0

    def sleep(self, seconds: float) -> None:
        """Sleeps for a fiftieth of the time waited so far, and for no longer than ``seconds``."""
        now = self._clock()
        if seconds != self._kind:
            self._kind, self._since = seconds, now
        shortest = SHORTEST_LOCAL_SECONDS
        if seconds > LONGEST_LOCAL_PAUSE_SECONDS:
            shortest = SHORTEST_REMOTE_SECONDS
            self._on_contact()
        else:
            self._on_work()
        self._pause(min(seconds, max(shortest, SHARE_OF_WAIT * (now - self._since))))


def leave_bundles_shut(module: ModuleType) -> None:
    """Changes ``flwr.supernode.start_client_internal``: a run has no configuration, whatever its app bundle holds."""
    module.get_fused_config_from_fab = lambda *_: {}  # type: ignore[attr-defined]


def main() -> None:
    """Runs Flower's SuperNode with the options on the command line.

    Raises:
        FlowerVersionError: another version of Flower is installed.
    """
    check_flower_version()
    from fastapi import FastAPI
    from flwr.supercore.inflatable import inflatable_protobuf_utils
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode import main as supernode_main
    from flwr.supernode.cli.flower_supernode import flower_supernode
    from flwr.supernode.servicer.runtime import runtime_handlers
    from uvicorn.protocols.http import httptools_impl

    from client.continuity import Continuity, whole_replies_only
    from client.downlink import Arrivals, answer_when_there, store_pieces_as_they_come
    from client.task_wait import TaskWait
    from client.uplink import patient
    from common.bulk_http import use_bulk_transport
    from common.large_objects import leave_pieces_beside
    from common.pulls import replace_pulls
    from common.short_way import ShortWay, receive_whole_bodies, runtime_answers

    state = Path(os.environ[STATE_VARIABLE])
    use_bulk_transport()
    make_app, answers, arrivals = supernode_main.create_app, runtime_answers("SuperNode"), Arrivals()
    answers[PULL_OBJECT] = answer_when_there(answers[PULL_OBJECT], arrivals)

    def make_shorter(*arguments: Any, **options: Any) -> FastAPI:
        app = make_app(*arguments, **options)
        app.add_middleware(ShortWay, answers=answers)
        app.add_middleware(TaskWait)
        return app

    supernode_main.create_app = make_shorter
    leave_pieces_beside(runtime_handlers)
    leave_pieces_beside(inflatable_protobuf_utils)
    receive_whole_bodies(httptools_impl)
    connect = start_client_internal.http_request_response  # type: ignore[attr-defined]
    continuity = Continuity(state)
    start_client_internal.http_request_response = continuity.around(connect)  # type: ignore[attr-defined,assignment]
    make_invoker = fleet_http_connection.make_simple_http_retry_invoker  # type: ignore[attr-defined]
    fleet_http_connection.make_simple_http_retry_invoker = patient(make_invoker)  # type: ignore[attr-defined]
    start_client_internal._push_messages = whole_replies_only(start_client_internal._push_messages, continuity)
    replace_pulls(start_client_internal)
    leave_bundles_shut(start_client_internal)
    store_pieces_as_they_come(start_client_internal, arrivals)
    # Not time itself, which all modules share: only the name in this one module.
    folder = StateFolder(state)
    start_client_internal.time = Pace(folder.contact.touch, on_work=folder.busy.touch)  # type: ignore[assignment, attr-defined]
    status: object = 1
    try:
        flower_supernode()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        # A log on a full disk must not keep the process here: it would hang for ever, without a connection.
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    main()
