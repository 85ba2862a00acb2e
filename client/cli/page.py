"""The command of ``fedvox-client`` that serves the hospital's page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from client.cli.options import add_kit_options, add_ledger_file
from common.system.cli import add_command, add_device, default_cache, show
from common.web.listening import HOST, add_tls_options, listening_from

PAGE_PORT = 8760
PAGE_ADDRESS = f"{HOST}:{PAGE_PORT}"
_EXAMPLES = ("--kit kit --data scans", "--kit kit --listen 192.0.2.7:8760 --tls-cert page.crt --tls-key page.key")


def add_page_command(commands: Any) -> None:
    """Add the command to the result of ``ArgumentParser.add_subparsers``."""
    page = add_command(commands, "page", _page, "review, decide and look back in a browser", *_EXAMPLES)
    add_kit_options(page)
    page.add_argument("--data", type=Path, metavar="DIR", help="dataset folder with labels, to check and to look at")
    page.add_argument("--cache", type=Path, metavar="DIR", help="preprocessed scans (default: $FEDVOX_CACHE)")
    add_ledger_file(page)
    add_device(page)
    page.add_argument("--listen", metavar="HOST:PORT", help=f"default: {PAGE_ADDRESS}")
    add_tls_options(page)


def _page(options: argparse.Namespace) -> int:
    listening = listening_from(options, "--listen", options.listen, PAGE_PORT)
    # Late: they import the web server.
    from client.state_folder import default_ledger
    from client.web.place import Place
    from client.web.serving import serve_page

    state = options.state if options.state is not None else options.kit / "state"
    data = None if options.data is None else options.data.absolute()
    place = Place(
        kit=options.kit.absolute(),
        state=state.absolute(),
        ledger=(options.ledger or default_ledger()).absolute(),
        data=data,
        cache=(options.cache or default_cache()).absolute(),
        device=options.device,
    )
    show("Each link signs in one person, once, within an hour. Stop with Ctrl-C.")
    serve_page(place, listening, show)
    return 0
