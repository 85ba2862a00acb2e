"""The command of ``fedvox-server`` that says what each site of a simulation contributed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.system.cli import add_command, add_device, add_json, default_cache, show
from common.system.files import write_atomically

EXAMPLES = ("runs/kept", "runs/hippocampus --data Task04_Hippocampus --patients 10 --rounds 5")


def add_contributions(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``contributions``."""
    text = "say what each site of a simulation added to its model, without training again"
    command = add_command(commands, "contributions", _contributions, text, *EXAMPLES)
    command.add_argument("run", type=Path, metavar="RUN_DIR", help="a simulation with simulation.keep_updates_gb")
    command.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (default: the run's phantoms)")
    command.add_argument("--cache", type=Path, metavar="DIR", help="for preprocessed scans (default: $FEDVOX_CACHE)")
    command.add_argument("--patients", type=int, metavar="N", help="score on N validation scans of each site at most")
    command.add_argument("--rounds", type=int, metavar="N", help="look at N of the kept rounds at most")
    command.add_argument(
        "--orders", type=int, default=20, metavar="N", help="random orders per round, for more than 4 sites (20)"
    )
    add_device(command)
    add_json(command)


def _contributions(options: argparse.Namespace) -> int:
    for flag, least in (("patients", 1), ("rounds", 1), ("orders", 2)):
        value = getattr(options, flag)
        if value is not None and value < least:
            raise ConfigError(f"--{flag} {value}: write {least} or more")
    # Imported late, so that a mistake is reported before PyTorch loads.
    from server.contributions.run import contributions_of_run
    from server.contributions.valuation import Sampling
    from server.progress.display import make_progress
    from server.progress.events import Stage
    from server.reporting.report import write_report
    from server.run_store.record_reader import CONTRIBUTIONS_FILE

    with make_progress() as display:
        found = contributions_of_run(
            options.run,
            options.data,
            options.cache or default_cache(),
            options.device,
            Sampling(options.rounds, options.orders, patients=options.patients),
            lambda done, total: display(Stage("scoring models without some of the sites", done, total)),
        )
    text = json.dumps(found.as_dict(), indent=2)
    write_atomically(options.run / CONTRIBUTIONS_FILE, text + "\n")
    report = write_report(options.run)
    show(text if options.json else "\n".join([*found.as_lines(), f"report: {report}"]))
    return 0
