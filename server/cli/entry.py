"""The command line for researchers and coordinators: ``fedvox-server``.

Heavy imports are deferred until a command needs them, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from common.errors import ConfigError, OutputError
from common.system.cli import add_command, add_device, add_json, add_metrics, base_parser, default_cache, run, show
from server.cli.compare import add_compare_command
from server.cli.contributions import add_contributions
from server.cli.dossier import add_dossier
from server.cli.export import add_export
from server.cli.network import add_network_commands
from server.cli.page import add_page_command
from server.cli.privacy import add_privacy_commands, add_set
from server.cli.tracking import add_track_command, add_tracking, measured, tracked
from server.formatting import format_best, format_seconds, scores_are_noised

SIMULATE_EXAMPLES = (
    "deploy/examples/phantom.yaml --out runs/first",
    "deploy/examples/hippocampus.yaml --data Task04_Hippocampus --set rounds=3",
    "deploy/examples/phantom.yaml --out runs/sweep --sweep training.learning_rate=0.001,0.002",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fedvox-server`` and return the exit status."""
    parser = base_parser("fedvox-server", "Run federations of hospitals: simulate, watch, report, export.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    simulate_text = "train a federation of simulated hospitals on this machine"
    simulate = add_command(commands, "simulate", _simulate, simulate_text, *SIMULATE_EXAMPLES)
    simulate.add_argument("federation", type=Path, metavar="FEDERATION.yaml", help="the federation file")
    simulate.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (default: the file's phantoms)")
    simulate.add_argument("--out", type=Path, metavar="RUN_DIR", help="run folder (default: runs/NAME-TIME)")
    simulate.add_argument("--engine", choices=["inline", "ray"], help="default: the federation file's")
    simulate.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster, such as ray://head:10001")
    add_device(simulate)
    add_set(simulate)
    simulate.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE,...",
        help="run once per value and report on all runs; privacy.epsilon=inf runs without privacy",
    )
    simulate.add_argument("--resume", action="store_true", help="resume the run in --out")
    simulate.add_argument("--cache", type=Path, metavar="DIR", help="for preprocessed scans (default: $FEDVOX_CACHE)")
    simulate.add_argument("--no-cache", action="store_true", help="keep preprocessed scans in memory only")

    add_tracking(simulate)
    add_metrics(simulate)

    add_compare_command(commands)

    status = add_command(commands, "status", _status, "show a run's progress", "runs/first")
    status.add_argument("run", type=Path, metavar="RUN_DIR")
    add_json(status)

    add_page_command(commands)

    report = add_command(commands, "report", _report, "rewrite a run's report.html", "runs/first")
    report.add_argument("run", type=Path, metavar="RUN_DIR")

    add_contributions(commands)
    add_dossier(commands)
    add_track_command(commands)
    add_export(commands)
    add_privacy_commands(commands)
    add_network_commands(commands)
    return run(parser, arguments)


def _simulate(options: argparse.Namespace) -> int:
    from common.config.federation import load_federation

    config = load_federation(options.federation, options.set)
    if options.resume and options.out is None:
        raise OutputError("--resume: needs --out RUN_DIR, the folder of the run to resume")
    if options.sweep:
        return _sweep(options, config.name)
    from server.progress.display import make_progress
    from server.simulation.experiment import SimulationOptions, simulate

    out = options.out or Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    cache = None if options.no_cache else options.cache or default_cache()
    chosen = SimulationOptions(
        options.data, out, options.engine, options.device, cache, options.resume, ray_address=options.ray_address
    )
    with make_progress() as display, measured(options, out), tracked(options, out, display) as emit:
        try:
            report = simulate(config, chosen, emit)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; finished work is kept. To resume: {_command_to_resume(options, out)}"
            ) from None
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    score = summary["best_mean_dice"]
    if score is not None:
        show(format_best(score, summary["best_round"], scores_are_noised(config.model_dump(mode="json"))))
    if summary["pooled"] and summary["pooled"]["mean_dice"] is not None:
        show(
            f"all data in one place: {summary['pooled']['mean_dice']:.3f} "
            f"({format_seconds(summary['pooled']['seconds'])}, and {format_seconds(summary['seconds'])} for the "
            "federation)"
        )
    show(f"model:  {out / 'model'}\nreport: {report}")
    return 0


def _command_to_resume(options: argparse.Namespace, out: Path) -> str:
    command = ["fedvox-server", "simulate", str(options.federation)]
    paths = (("--data", options.data), ("--cache", options.cache), ("--tracking", options.tracking))
    for flag, value in (
        *paths,
        ("--engine", options.engine),
        ("--ray-address", options.ray_address),
        ("--metrics", options.metrics),
    ):
        command += [flag, str(value)] if value else []
    command += ["--no-cache"] if options.no_cache else []
    command += ["--device", options.device] if options.device != "auto" else []
    for override in options.set:
        command += ["--set", override]
    return shlex.join([*command, "--out", str(out), "--resume"])


def _sweep(options: argparse.Namespace, name: str) -> int:
    from common.config.federation import load_federation
    from server.simulation.sweep import parse_sweep, run_sweep, sweep_configurations

    if len(options.sweep) > 1:
        raise ConfigError("--sweep: given more than once; sweep one key at a time")
    if options.tracking:
        raise ConfigError("--tracking: follows one run; send those of a sweep afterwards, with fedvox-server track")
    if options.metrics:
        raise ConfigError("--metrics: shows one run, not a sweep; drop one of the two")
    sweep = parse_sweep(options.sweep[0])
    configurations = sweep_configurations(sweep, lambda more: load_federation(options.federation, options.set + more))
    from server.progress.display import make_progress
    from server.simulation.experiment import SimulationOptions

    out = options.out or Path("runs") / f"{name}-sweep-{datetime.now():%Y%m%d-%H%M%S}"
    cache = None if options.no_cache else options.cache or default_cache()
    chosen = SimulationOptions(
        options.data, out, options.engine, options.device, cache, options.resume, ray_address=options.ray_address
    )
    with make_progress() as display:
        try:
            report, complete = run_sweep(sweep, configurations, chosen, display)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; finished work is kept. To resume, repeat the command with --out {out} --resume"
            ) from None
    for result in json.loads((out / "sweep.json").read_text(encoding="utf-8"))["runs"]:
        score = "no score" if result["mean_dice"] is None else f"mean Dice {result['mean_dice']:.3f}"
        show(f"{sweep.key}={result['value']}: {result['status']}, {score}")
    show(f"report: {report}")
    return 0 if complete else 1


def _status(options: argparse.Namespace) -> int:
    from server.run_store.folder import RunFolder
    from server.run_store.status import describe_run

    status = describe_run(RunFolder.open(options.run))
    show(json.dumps(status.as_dict(), indent=2) if options.json else status.as_text())
    return 0


def _report(options: argparse.Namespace) -> int:
    from server.reporting.report import write_report

    show(write_report(options.run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
