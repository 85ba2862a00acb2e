"""Commands to take part in a federation: request, preflight, start, courier, runner, status, health."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.cli.options import add_kit_options, add_ledger_file
from client.cli.page import PAGE_ADDRESS, PAGE_PORT
from common.formatting import counted, visible
from common.system.cli import add_command, add_device, add_json, add_linger, add_metrics, default_cache, show
from common.web.listening import add_tls_options, listening_from

if TYPE_CHECKING:
    from client.site.start import SiteOptions


def add_network_commands(commands: Any) -> None:
    """Add the commands to the result of ``ArgumentParser.add_subparsers``."""
    request = add_command(
        commands, "request", _request, "create this site's key and a certificate request", "--name north --out key"
    )
    request.add_argument("--name", "--site", required=True, metavar="NAME", help="the site's name in the federation")
    request.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for key and request")

    for name, function, text in (
        ("preflight", _preflight, "check everything that start needs"),
        ("start", _start, "take part in a federation, until Ctrl-C or SIGTERM"),
    ):
        command = add_command(commands, name, function, text, "--kit kit --data scans")
        _add_site_options(command)
        if name == "start":
            command.add_argument(
                "--page", nargs="?", const=PAGE_ADDRESS, metavar="HOST:PORT", help=f"also serve a page ({PAGE_ADDRESS})"
            )
            add_tls_options(command)
            add_metrics(command)

    courier_text = "run the part of a site that talks to the server and sees no scans"
    courier_example = "--kit kit --state courier-state --shared shared"
    courier = add_command(commands, "courier", _courier, courier_text, courier_example)
    add_kit_options(courier)
    _add_half_options(courier)

    runner_text = "run the part of a site that trains and needs no network"
    runner_example = "--kit kit --data scans --state runner-state --shared shared"
    runner = add_command(commands, "runner", _runner, runner_text, runner_example)
    _add_site_options(runner)
    _add_half_options(runner)

    status = add_command(commands, "status", _status, "show what a site is doing now", "--kit kit")
    add_kit_options(status)
    add_json(status)

    health_text = "show in one line whether the processes on a state folder are healthy"
    health = add_command(commands, "health", _health, health_text, "--state state")
    health.add_argument("--state", type=Path, required=True, metavar="DIR", help="folder of start, courier or runner")


def _add_site_options(command: argparse.ArgumentParser) -> None:
    add_kit_options(command)
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder with labels")
    command.add_argument("--cache", type=Path, metavar="DIR", help="preprocessed scans (default: $FEDVOX_CACHE)")
    add_ledger_file(command)
    command.add_argument("--no-cache", action="store_true", help="keep preprocessed scans in memory only")
    add_device(command)


def _add_half_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shared", type=Path, required=True, metavar="DIR", help="folder shared by both processes, on a local disk"
    )
    add_metrics(command)
    add_linger(command)


def _state(options: argparse.Namespace) -> Path:
    state: Path | None = options.state
    return (state if state is not None else options.kit / "state").absolute()


def _site_options(options: argparse.Namespace, shared: Path | None = None) -> SiteOptions:
    from client.site.start import SiteOptions
    from client.state_folder import StateFolder, default_ledger

    cache = None if options.no_cache else (options.cache or default_cache()).absolute()
    ledger = (options.ledger or default_ledger()).absolute()
    state = _state(options)
    shared = shared or StateFolder(state).shared
    return SiteOptions(options.kit.absolute(), options.data.absolute(), state, shared, cache, options.device, ledger)


def _request(options: argparse.Namespace) -> int:
    from client.site.signing_request import make_request

    files = make_request(options.name, options.out)
    show(f"{files.key}: stays here; later copy it into the kit")
    show(f"{files.request}: send this to the coordinator")
    show(f"fingerprint {files.fingerprint}: if the coordinator asks which key is yours, compare it by telephone")
    return 0


def _preflight(options: argparse.Namespace) -> int:
    from client.site.start import run_preflight
    from client.state_folder import StateFolder
    from common.config.kit import read_kit

    site = _site_options(options)
    read_kit(site.kit, "site")  # no state folder for a kit that is none
    StateFolder(site.state).make()
    worst = 0
    for item in run_preflight(site):
        show(item)
        worst = max(worst, int(item.severity == "error"))
    return worst


def _start(options: argparse.Namespace) -> int:
    with _measured(options):
        return _start_with_page(options)


def _start_with_page(options: argparse.Namespace) -> int:
    from client.site.start import start

    site = _site_options(options)
    if options.page is None:
        return start(site, _say)
    listening = listening_from(options, "--page", options.page, PAGE_PORT)
    from client.web.place import Place
    from client.web.serving import page_beside
    from common.config.kit import read_kit

    read_kit(site.kit, "site")
    with page_beside(Place(site.kit, site.state, site.ledger, site.data, site.cache, site.device), listening, _say):
        return start(site, _say)


def _courier(options: argparse.Namespace) -> int:
    from client.site.split_start import CourierOptions, start_courier

    with _measured(options):
        return start_courier(CourierOptions(options.kit.absolute(), _state(options), options.shared.absolute()), _say)


def _runner(options: argparse.Namespace) -> int:
    from client.site.split_start import start_runner

    with _measured(options):
        return start_runner(_site_options(options, options.shared.absolute()), _say)


@contextmanager
def _measured(options: argparse.Namespace) -> Iterator[None]:
    """Serve the site's metrics for a block, if ``--metrics`` is given."""
    if options.metrics is None:
        yield
        return
    from client.site.metrics import SiteMetrics
    from client.state_folder import StateFolder
    from common.config.network import parse_metrics
    from common.system.metrics_endpoint import metrics_served

    with metrics_served(*parse_metrics(options.metrics), SiteMetrics(StateFolder(_state(options))).collect):
        yield


def _say(line: str) -> None:
    show(line)


def _health(options: argparse.Namespace) -> int:
    from client.site.health import health_problem
    from client.state_folder import StateFolder

    problem = health_problem(StateFolder(options.state))
    show(problem or "healthy")
    return 1 if problem else 0


def _status(options: argparse.Namespace) -> int:
    from client.state_folder import StateFolder, site_status
    from common.config.federation import as_json
    from common.config.kit import read_kit

    kit = read_kit(options.kit, "site")
    status = site_status(StateFolder(_state(options)))
    if options.json:
        show(as_json({"site": kit.site, "federation": kit.federation, **status}), end="")
        return 0 if status["running"] else 1
    show(f"site {kit.site} of {kit.federation}: {'running' if status['running'] else 'not running'}")
    if not status["running"]:
        return 1
    if status["role"] == "runner":
        show(f"server {kit.endpoint}: see the status of the courier, which talks to it")
    else:
        contact = status["last_contact"]
        seen = "no contact yet" if contact is None else f"last contact {contact:.0f} s ago"
        show(f"server {kit.endpoint}: {'connected' if status['connected'] else 'NOT connected'}, {seen}")
    show(visible(f"runner: {_what_runner_does(status['runner'])}"))
    if status["runner"].get("notice"):
        show(visible(f"NOTICE: {status['runner']['notice']}"))
    if "network" in status["runner"]:
        show(f"runner: {status['runner']['network']}")
    for name, process in status["processes"].items():
        age = time.time() - process["since"]
        restarts = counted(process["restarts"], "restart")
        show(f"{name}: {process['state']} for {age:.0f} s, pid {process['pid']}, {restarts}")
    return 0


def _what_runner_does(runner: dict[str, Any]) -> str:
    if runner.get("problem"):
        return f"PROBLEM: {runner['problem']}"
    if runner.get("state") == "preparing data" and runner.get("cases"):
        return f"preparing data, {runner['prepared']} of {counted(runner['cases'], 'case')}"
    if runner.get("step", 0) < runner.get("steps", 0):
        return f"training, round {runner['round']}, step {runner['step']} of {runner['steps']}"
    words = {
        "waiting": "waiting for a task",
        "elsewhere": "runs elsewhere",
    }
    state = str(runner.get("state"))
    return words.get(state, state)
