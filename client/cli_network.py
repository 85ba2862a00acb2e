"""The commands with which a hospital takes part: request, preflight, start, supernode, runner, status, health."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import add_linger, default_cache
from common.network_config import format_endpoint, parse_endpoint, parse_listen

if TYPE_CHECKING:
    from client.start import SiteOptions


def add_network_commands(commands: Any) -> None:
    """Adds the commands to what ``ArgumentParser.add_subparsers`` returned."""
    request = commands.add_parser(
        "request",
        help="make this site's own key, and a request to be let in",
        epilog="example:\n  fedvox-client request --name north --out key\n",
    )
    request.add_argument("--name", "--site", required=True, metavar="NAME", help="the site's name in the federation")
    request.add_argument("--out", type=Path, required=True, metavar="DIR", help="where key and request go")
    request.set_defaults(command=_request)

    preflight = commands.add_parser(
        "preflight",
        help="see whether everything is there that start needs",
        epilog="example:\n  fedvox-client preflight --kit kit --data scans\n",
    )
    _add_site_options(preflight)
    preflight.set_defaults(command=_preflight)

    start = commands.add_parser(
        "start",
        help="take part in a federation, until Ctrl-C or SIGTERM",
        epilog="example:\n  fedvox-client start --kit kit --data scans\n",
    )
    _add_site_options(start)
    start.set_defaults(command=_start)

    supernode = commands.add_parser(
        "supernode",
        help="run the one half of a site that speaks with the server, and sees no scans",
        epilog="example:\n  fedvox-client supernode --kit kit --state state --listen 10.0.0.2:9094 "
        "--secret-file secret\n",
    )
    _add_kit_options(supernode)
    supernode.add_argument("--listen", required=True, metavar="HOST:PORT", help="where the runner reaches it")
    _add_secret(supernode)
    supernode.add_argument("--health", metavar="HOST:PORT", help="where it tells its health by gRPC (default: nowhere)")
    add_linger(supernode)
    supernode.set_defaults(command=_supernode)

    runner = commands.add_parser(
        "runner",
        help="run the other half, which trains, and needs no network but its way to supernode",
        epilog="example:\n  fedvox-client runner --kit kit --data scans --state state --supernode 10.0.0.2:9094 "
        "--secret-file secret\n",
    )
    _add_site_options(runner)
    runner.add_argument("--supernode", required=True, metavar="HOST:PORT", help="where supernode listens")
    _add_secret(runner)
    add_linger(runner)
    runner.set_defaults(command=_runner)

    status = commands.add_parser(
        "status",
        help="say what a site does at this moment",
        epilog="example:\n  fedvox-client status --kit kit\n",
    )
    _add_kit_options(status)
    status.add_argument("--json", action="store_true", help="for machines")
    status.set_defaults(command=_status)

    health = commands.add_parser(
        "health",
        help="say in a line whether what runs on a state folder does its work; for health checks",
        epilog="example:\n  fedvox-client health --state state\n",
    )
    health.add_argument("--state", type=Path, required=True, metavar="DIR", help="of start, supernode or runner")
    health.set_defaults(command=_health)


def _add_kit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the kit that the coordinator sent")
    command.add_argument("--state", type=Path, metavar="DIR", help="the site's own files (default: state in the kit)")


def _add_site_options(command: argparse.ArgumentParser) -> None:
    _add_kit_options(command)
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder with labels")
    command.add_argument("--cache", type=Path, metavar="DIR", help="preprocessed scans (default: $FEDVOX_CACHE)")
    command.add_argument("--ledger", type=Path, metavar="FILE", help="privacy ledger (default: $FEDVOX_LEDGER)")
    command.add_argument("--no-cache", action="store_true", help="keep preprocessed scans in memory only")
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")


def _add_secret(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--secret-file", type=Path, required=True, metavar="FILE", help="by which supernode and runner know each other"
    )


def _state(options: argparse.Namespace) -> Path:
    state: Path | None = options.state
    return (state if state is not None else options.kit / "state").absolute()


def _site_options(options: argparse.Namespace) -> SiteOptions:
    from client.site_state import default_ledger
    from client.start import SiteOptions

    cache = None if options.no_cache else (options.cache or default_cache()).absolute()
    ledger = (options.ledger or default_ledger()).absolute()
    return SiteOptions(options.kit.absolute(), options.data.absolute(), _state(options), cache, options.device, ledger)


def _request(options: argparse.Namespace) -> int:
    from client.request import make_request

    files = make_request(options.name, options.out)
    print(f"{files.key}: stays here; later copy it into the kit")
    print(f"{files.request}: send this to the coordinator")
    return 0


def _preflight(options: argparse.Namespace) -> int:
    from client.site_state import StateFolder
    from client.start import look_around

    site = _site_options(options)
    StateFolder(site.state).make()
    worst = 0
    for item in look_around(site):
        print(item, flush=True)
        worst = max(worst, int(item.severity == "error"))
    return worst


def _start(options: argparse.Namespace) -> int:
    from client.start import start

    return start(_site_options(options), _say)


def _supernode(options: argparse.Namespace) -> int:
    from client.parts import SupernodeOptions, start_supernode

    listen = parse_listen("--listen", options.listen, "10.0.0.2:9094")
    health = format_endpoint(*parse_endpoint("--health", options.health, "127.0.0.1:9095")) if options.health else ""
    return start_supernode(
        SupernodeOptions(options.kit.absolute(), _state(options), listen, options.secret_file.absolute(), health), _say
    )


def _runner(options: argparse.Namespace) -> int:
    from client.parts import RunnerOptions, start_runner

    supernode = format_endpoint(*parse_endpoint("--supernode", options.supernode, "10.0.0.2:9094"))
    return start_runner(RunnerOptions(_site_options(options), supernode, options.secret_file.absolute()), _say)


def _say(line: str) -> None:
    print(line, flush=True)


def _health(options: argparse.Namespace) -> int:
    from client.health import illness
    from client.site_state import StateFolder

    wrong = illness(StateFolder(options.state))
    print(wrong or "well")
    return 1 if wrong else 0


def _status(options: argparse.Namespace) -> int:
    from client.site_state import StateFolder, site_status
    from common.config import as_json
    from common.network_config import read_kit

    kit = read_kit(options.kit, "site")
    status = site_status(StateFolder(_state(options)))
    if options.json:
        print(as_json({"site": kit.site, "federation": kit.federation, **status}), end="")
        return 0 if status["running"] else 1
    print(f"site {kit.site} of {kit.federation}: {'running' if status['running'] else 'not running'}")
    if not status["running"]:
        return 1
    if status["role"] == "runner":
        print(f"server {kit.endpoint}: ask the status of supernode, which speaks with it")
    else:
        contact = status["last_contact"]
        seen = "no contact yet" if contact is None else f"last contact {contact:.0f} s ago"
        print(f"server {kit.endpoint}: {'connected' if status['connected'] else 'NOT connected'}, {seen}")
    print(f"runner: {_what_runner_does(status['runner'])}")
    for name, process in status["processes"].items():
        age = time.time() - process["since"]
        print(f"{name}: {process['state']} for {age:.0f} s, pid {process['pid']}, {process['restarts']} restarts")
    return 0


def _what_runner_does(runner: dict[str, Any]) -> str:
    if runner.get("problem"):
        return f"PROBLEM: {runner['problem']}"
    if runner.get("state") == "preparing data" and runner.get("cases"):
        return f"preparing data, {runner['prepared']} of {runner['cases']} cases"
    if runner.get("step", 0) < runner.get("steps", 0):
        return f"training, round {runner['round']}, step {runner['step']} of {runner['steps']}"
    words = {
        "waiting": "waiting for a task",
        "away": "waiting for SuperNode",
        "refused": "PROBLEM: SuperNode refuses it",
        "elsewhere": "runs elsewhere",
    }
    state = str(runner.get("state"))
    return words.get(state, state)
