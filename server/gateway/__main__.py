"""``python -m server.gateway --kit DIR --run DIR --listen HOST:PORT`` runs the gateway as its own process."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.config.network import parse_listen
from common.system.cli import base_parser, run


def _serve(options: argparse.Namespace) -> int:
    from server.gateway.listen import Listen
    from server.gateway.serve import GatewayOptions, serve

    listen = Listen(*parse_listen("--listen", options.listen, "0.0.0.0:9443"))
    return serve(GatewayOptions(options.kit.absolute(), options.run.absolute(), listen, options.tls_ended_by_proxy))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gateway with command-line options and return the exit status."""
    parser = base_parser("server.gateway", "Run a federation's gateway, the one port that sites reach.")
    parser.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the server's kit")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder, shared with start")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="address for the sites, or for the proxy")
    parser.add_argument(
        "--tls-ended-by-proxy", action="store_true", help="speak plain HTTP to a proxy that checks certificates"
    )
    parser.set_defaults(command=_serve)
    return run(parser, arguments)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
