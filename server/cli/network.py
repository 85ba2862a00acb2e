"""The commands of ``fedvox-server`` that provision and run a federation over a network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.network import format_endpoint, parse_endpoint, parse_listen
from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.system.cli import add_command, add_linger, add_metrics, show
from server.cli.page import add_page_option, page_beside
from server.cli.tracking import add_tracking, measured, tracked
from server.formatting import format_best, scores_are_noised

if TYPE_CHECKING:
    from server.gateway.listen import Listen

PROVISION_EXAMPLES = "federation.yaml --out kits", "federation.yaml --out kits --request north.csr"
START_EXAMPLES = "--kit kits/server", "--kit kits/server --run runs/first --listen 0.0.0.0:9443"
GATEWAY_EXAMPLE = "--kit kits/server --run runs/first --listen 0.0.0.0:9443"
HEALTH_EXAMPLES = "--superlink 127.0.0.1:9095", "--gateway 127.0.0.1:9443"


def add_network_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``provision``, ``revoke``, ``start``, ``gateway``, ``health`` and ``release``."""
    provision_text = "make the kits of a federation's server and sites"
    provision = add_command(commands, "provision", _provision, provision_text, *PROVISION_EXAMPLES)
    # A kit goes to a hospital, where other accounts read it; keys in it are their owner's alone all the same.
    provision.set_defaults(for_others=True)
    provision.add_argument(
        "federation", type=Path, metavar="FEDERATION.yaml", help="federation file with a network section"
    )
    provision.add_argument("--out", type=Path, required=True, metavar="KITS", help="folder of all kits")
    provision.add_argument(
        "--request", type=Path, action="append", default=[], metavar="FILE", help="signing request of a site"
    )
    provision.add_argument(
        "--fingerprint", type=Path, action="append", default=[], metavar="FILE", help="fingerprint of a site"
    )
    provision.add_argument(
        "--replace", action="append", default=[], metavar="SITE", help="let a request replace this site's key"
    )
    provision.add_argument("--renew", action="append", default=[], metavar="SITE", help="give a site a new key")

    revoke = add_command(commands, "revoke", _revoke, "revoke a site's key", "north --kits kits")
    revoke.add_argument("site", metavar="SITE")
    revoke.add_argument("--kits", type=Path, required=True, metavar="KITS", help="folder of all kits")

    start = add_command(commands, "start", _start, "run a federation with real sites", *START_EXAMPLES)
    start.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the server's kit")
    start.add_argument("--run", type=Path, metavar="RUN_DIR", help="run folder (default: run in the kit)")
    _add_listen(start)
    start.add_argument("--without-gateway", action="store_true", help="do not start the gateway; it runs separately")
    start.add_argument("--health", metavar="HOST:PORT", help="address for SuperLink's gRPC health service")
    add_tracking(start)
    add_page_option(start)
    add_metrics(start)
    add_linger(start)

    gateway_text = "run the gateway, the one port that sites reach, separately from start --without-gateway"
    gateway = add_command(commands, "gateway", _gateway, gateway_text, GATEWAY_EXAMPLE)
    gateway.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the server's kit")
    gateway.add_argument("--run", type=Path, required=True, metavar="RUN_DIR", help="run folder, shared with start")
    _add_listen(gateway)
    gateway.add_argument(
        "--tls-ended-by-proxy", action="store_true", help="speak plain HTTP to a proxy that checks certificates"
    )
    add_linger(gateway)

    health_text = "check whether SuperLink or the gateway answers"
    health = add_command(commands, "health", _health, health_text, *HEALTH_EXAMPLES)
    which = health.add_mutually_exclusive_group(required=True)
    which.add_argument("--superlink", metavar="HOST:PORT", help="the address given to start --health")
    which.add_argument("--gateway", metavar="HOST:PORT", help="the gateway's address")

    release = add_command(commands, "release", _release, "take a site out of quarantine", "kits/server/run north")
    release.add_argument("run", type=Path, metavar="RUN_DIR")
    release.add_argument("site", metavar="SITE")


def _add_listen(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--listen", metavar="HOST:PORT", help="address for the sites (default: the kit's port, all interfaces)"
    )


def _provision(options: argparse.Namespace) -> int:
    from common.config.federation import load_federation
    from server.provisioning.kits import provision

    config = load_federation(options.federation)
    given = options.request, options.renew, options.replace, options.fingerprint
    report = provision(config, options.out, *given)
    show(report.as_text())
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from server.provisioning.kits import revoke

    show("\n".join(revoke(options.kits, options.site)))
    return 0


def _start(options: argparse.Namespace) -> int:
    from common.system.flower import check_flower_version

    check_flower_version()
    from server.coordinator.service import StartOptions, start
    from server.progress.display import make_progress

    run = options.run or options.kit / "run"
    if options.without_gateway and options.listen:
        raise ConfigError(f"--listen {options.listen}: has no effect with --without-gateway; drop one of the two")
    listen = _listen(options.listen) if options.listen else None
    health = format_endpoint(*parse_endpoint("--health", options.health, "127.0.0.1:9095")) if options.health else ""
    chosen = StartOptions(options.kit, run, listen, not options.without_gateway, health)
    with (
        page_beside(options, run),
        measured(options, run),
        make_progress() as display,
        tracked(options, run, display) as emit,
    ):
        try:
            report = start(chosen, emit)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; finished work is kept. To resume: fedvox-server start --kit {options.kit}"
            ) from None
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if summary["best_mean_dice"] is not None:
        federation = read_yaml(run / "federation.yaml")
        show(format_best(summary["best_mean_dice"], summary["best_round"], scores_are_noised(federation)))
    show(f"model:  {run / 'model'}\nreport: {report}")
    return 0


def _release(options: argparse.Namespace) -> int:
    from server.rounds.quarantine import release
    from server.run_store.folder import RunFolder

    release(RunFolder.open(options.run), options.site)
    show(f"{options.site} takes part again from the next round")
    return 0


def _gateway(options: argparse.Namespace) -> int:
    from common.config.kit import read_kit
    from server.gateway.listen import default_listen
    from server.gateway.serve import GatewayOptions, serve

    listen = _listen(options.listen) if options.listen else default_listen(read_kit(options.kit, "server"))
    return serve(GatewayOptions(options.kit.absolute(), options.run.absolute(), listen, options.tls_ended_by_proxy))


def _health(options: argparse.Namespace) -> int:
    if options.superlink:
        from common.system.grpc_health import is_serving

        serves = is_serving(format_endpoint(*parse_endpoint("--superlink", options.superlink, "127.0.0.1:9095")))
    else:
        from common.system.supervisor import answers

        host, port = parse_endpoint("--gateway", options.gateway, "127.0.0.1:9443")
        serves = answers(port, host)
    show("serving" if serves else f"no answer at {options.superlink or options.gateway}")
    return 0 if serves else 1


def _listen(text: str) -> Listen:
    from server.gateway.listen import Listen

    return Listen(*parse_listen("--listen", text, "0.0.0.0:9443"))
