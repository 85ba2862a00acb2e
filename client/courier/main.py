"""The courier's program: ``python -m client.courier --kit DIR --state DIR --shared DIR``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from client.state_folder import StateFolder
from common.system.cli import add_linger, base_parser, run
from common.system.flower import check_flower_version
from common.system.logs import log_to_stderr


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the courier's options."""
    parser.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the site's kit")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where the courier keeps its state")
    parser.add_argument("--shared", type=Path, required=True, metavar="DIR", help="the folder shared with the runner")
    add_linger(parser)


def run_courier(options: argparse.Namespace) -> int:
    """Run the courier until SIGTERM or Ctrl-C.

    Returns
    -------
    int
        Always 0.

    Raises
    ------
    FedvoxError
        If it cannot start, or one of its threads has failed for good.
    """
    log_to_stderr(logging.INFO)
    logging.getLogger("fedvox").setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_flower_version()
    # Set both before anything imports flwr.
    os.environ.setdefault("FLWR_HOME", str(StateFolder(options.state).flower_home))
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    from client.courier.courier import Courier

    courier = Courier(options.kit, options.state, options.shared)
    try:
        courier.run()
    except KeyboardInterrupt:
        logging.getLogger("fedvox.courier").info("stopped")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the courier with the command line's options and return the exit status."""
    parser = base_parser("client.courier", "Carries tasks, models and answers between a server and a site's runner.")
    add_options(parser)
    parser.set_defaults(command=run_courier)
    return run(parser, arguments)
