"""The command of ``fedvox-server`` that serves the coordinator's page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.system.cli import add_command, show
from common.web.listening import add_tls_options, listening_from

PAGE_PORT = 8750
PAGE_EXAMPLES = (
    "runs/first",
    "runs/first runs/second --listen 127.0.0.1:9000",
    "kits/server/run --listen 192.0.2.7:8750 --tls-cert page.crt --tls-key page.key",
)


def add_page_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``page``."""
    page = add_command(commands, "page", _page, "show runs in a browser, live", *PAGE_EXAMPLES)
    page.add_argument("run", type=Path, nargs="+", metavar="RUN_DIR", help="run folders")
    page.add_argument("--listen", metavar="HOST:PORT", help=f"default: 127.0.0.1:{PAGE_PORT}")
    add_tls_options(page)


def add_page_option(command: argparse.ArgumentParser) -> None:
    """Add ``--page`` for a command that works on a run."""
    text = f"show the run in a browser as long as it lasts (default: 127.0.0.1:{PAGE_PORT})"
    command.add_argument("--page", nargs="?", const=f"127.0.0.1:{PAGE_PORT}", metavar="HOST:PORT", help=text)
    add_tls_options(command)


@contextmanager
def page_beside(options: argparse.Namespace, run: Path) -> Iterator[None]:
    """Serve a run's page during a block, if ``--page`` says so; the run may begin later.

    Raises
    ------
    ConfigError
        The address or the TLS files cannot be used.
    OutputError
        The address cannot be listened on.
    """
    if options.page is None:
        yield
        return
    listening = listening_from(options, "--page", options.page, PAGE_PORT)
    from common.web.serve import served
    from server.web.side import server_side

    with served(server_side([run]), listening, show):
        yield


def _page(options: argparse.Namespace) -> int:
    listening = listening_from(options, "--listen", options.listen, PAGE_PORT)
    from common.web.serve import serve
    from server.web.side import check_folders, server_side

    check_folders(options.run)
    show("Each link signs in one person, once, within an hour. Stop with Ctrl-C.")
    serve(server_side(options.run), listening, show)
    return 0
