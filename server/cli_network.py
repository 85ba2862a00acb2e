"""The commands of ``fedvox-server`` that make and run a federation over a network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from common.network_config import is_ip_address
from server.proxy import Listen
from server.text import format_best, scores_are_noised

PROVISION_EXAMPLE = """\
example:
  fedvox-server provision federation.yaml --out kits
  fedvox-server provision federation.yaml --out kits --request north.csr
"""
START_EXAMPLE = """\
example:
  fedvox-server start --kit kits/server
  fedvox-server start --kit kits/server --run runs/first --listen 0.0.0.0:9443
"""


def add_network_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``provision``, ``revoke``, ``start`` and ``release``."""
    provision = commands.add_parser(
        "provision", help="make the kits of a federation's server and sites", epilog=PROVISION_EXAMPLE
    )
    provision.add_argument("federation", type=Path, metavar="FEDERATION.yaml", help="with a network section")
    provision.add_argument("--out", type=Path, required=True, metavar="KITS", help="folder of all kits")
    provision.add_argument(
        "--request", type=Path, action="append", default=[], metavar="FILE", help="signing request of a site"
    )
    provision.add_argument("--renew", action="append", default=[], metavar="SITE", help="give a site a new key")
    provision.set_defaults(command=_provision)

    revoke = commands.add_parser(
        "revoke", help="let a site in no more", epilog="example:\n  fedvox-server revoke north --kits kits\n"
    )
    revoke.add_argument("site", metavar="SITE")
    revoke.add_argument("--kits", type=Path, required=True, metavar="KITS", help="folder of all kits")
    revoke.set_defaults(command=_revoke)

    start = commands.add_parser("start", help="run a federation with real sites", epilog=START_EXAMPLE)
    start.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the server's kit")
    start.add_argument("--run", type=Path, metavar="RUN_DIR", help="run folder (default: run in the kit)")
    start.add_argument(
        "--listen", metavar="HOST:PORT", help="where sites reach it (default: the kit's port, all addresses)"
    )
    start.set_defaults(command=_start)

    release = commands.add_parser(
        "release",
        help="take a site out of quarantine",
        epilog="example:\n  fedvox-server release kits/server/run north\n",
    )
    release.add_argument("run", type=Path, metavar="RUN_DIR")
    release.add_argument("site", metavar="SITE")
    release.set_defaults(command=_release)


def _provision(options: argparse.Namespace) -> int:
    from common.config import load_federation
    from server.provision import provision

    report = provision(load_federation(options.federation), options.out, options.request, options.renew)
    print(report.as_text())
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from server.provision import revoke

    print("\n".join(revoke(options.kits, options.site)))
    return 0


def _start(options: argparse.Namespace) -> int:
    from common.flower import check_flower_version

    check_flower_version()
    from server.network import StartOptions, start
    from server.progress import make_progress

    run = options.run or options.kit / "run"
    listen = _listen(options.listen) if options.listen else None
    with make_progress() as display:
        try:
            report = start(StartOptions(options.kit, run, listen), display)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; what is finished is kept. To go on: fedvox-server start --kit {options.kit}"
            ) from None
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if summary["best_mean_dice"] is not None:
        federation = yaml.safe_load((run / "federation.yaml").read_text(encoding="utf-8"))
        print(format_best(summary["best_mean_dice"], summary["best_round"], scores_are_noised(federation)))
    print(f"model:  {run / 'model'}\nreport: {report}")
    return 0


def _release(options: argparse.Namespace) -> int:
    from server.quarantine import release
    from server.state import RunFolder

    release(RunFolder.open(options.run), options.site)
    print(f"{options.site} takes part again from the next round on")
    return 0


def _listen(text: str) -> Listen:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not is_ip_address(host) or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError(f"--listen {text}: write an IP address of this machine and a port, for example 0.0.0.0:9443")
    return Listen(host, int(port))
