"""Starts Flower's SuperLink for a federation: ``python -m server.superlink`` takes ``flower-superlink``'s options.

It differs in six things. A site may do less (``server.site_requests``, ``server.doorkeeper``). Its state is kept in
another way (``server.link_state``). The hot requests go a short way through it (``common.short_way``), and a site's
question for a message waits for one (``server.message_wait``). The body of a request goes through its layers at once,
not in portions of 64 KiB, each of which costs as much as a request, and pieces of a model are not copied on their way
(``common.large_objects``). And a proxy on the same machine reaches it by ``server.unix_socket``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common.flower import check_flower_version
from server import unix_socket


def main() -> None:
    """Runs Flower's SuperLink with the options on the command line.

    Raises:
        FlowerVersionError: another version of Flower is installed.
    """
    check_flower_version()
    import uvicorn
    from flwr.superlink import main as superlink_main
    from flwr.superlink.cli import flower_superlink
    from flwr.superlink.servicer.fleet import fleet_handlers
    from starlette.middleware import Middleware
    from uvicorn.protocols.http import httptools_impl

    from common.large_objects import leave_pieces_beside
    from common.short_way import ShortWay, receive_whole_bodies, runtime_answers
    from server.doorkeeper import Doorkeeper
    from server.fleet import fleet_answers
    from server.link_state import change_state, put_aside_if_damaged
    from server.message_wait import MessageWait
    from server.site_requests import check_all_requests

    layers = superlink_main._get_middleware
    ours = [Middleware(Doorkeeper), Middleware(ShortWay, answers=fleet_answers() | runtime_answers("SuperLink"))]
    if "--database" in sys.argv[:-1]:
        database = sys.argv[sys.argv.index("--database") + 1]
        aside = put_aside_if_damaged(Path(database))
        if aside is not None:
            sys.stderr.write(f"the database was damaged and is now {aside}; sites are registered anew\n")
        ours.insert(1, Middleware(MessageWait, database=database))
    change_state()
    check_all_requests()
    superlink_main._get_middleware = lambda: [*ours, *layers()]
    leave_pieces_beside(fleet_handlers)
    receive_whole_bodies(httptools_impl)
    if path := os.environ.get(unix_socket.VARIABLE):
        unix_socket.listen_also_on(Path(path), uvicorn.Server)
    flower_superlink()


if __name__ == "__main__":
    main()
