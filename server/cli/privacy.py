"""The command of ``fedvox-server`` that forecasts, before training, what a privacy budget allows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.system.cli import add_command, add_json, default_cache, show

PLAN_EXAMPLES = (
    "deploy/examples/phantom-private.yaml",
    "federation.yaml --patients 117,37,23 --set privacy.epsilon=3 --json",
)


def add_privacy_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``plan-privacy``."""
    text = "forecast noise, epsilon and signal of a private federation"
    plan = add_command(commands, "plan-privacy", _plan_privacy, text, *PLAN_EXAMPLES)
    plan.add_argument("federation", type=Path, metavar="FEDERATION.yaml", help="federation file with a privacy section")
    plan.add_argument(
        "--patients",
        metavar="N,N,...",
        help="training patients of each site (default: from --data, else from the file's phantoms)",
    )
    plan.add_argument("--data", type=Path, metavar="DIR", help="dataset folder, split among the sites as in simulate")
    plan.add_argument("--cache", type=Path, metavar="DIR", help="for data read from --data (default: $FEDVOX_CACHE)")
    add_json(plan)
    add_set(plan)


def add_set(command: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="replace one value of the federation file"
    )


def _plan_privacy(options: argparse.Namespace) -> int:
    from common.config.federation import load_federation

    config = load_federation(options.federation, options.set)
    if config.privacy is not None:
        from common.privacy.calibration import check_epsilon

        check_epsilon(config.privacy.epsilon, config.privacy.delta)
    counts = None if options.patients is None else _counts(options.patients)
    # Imported late, so that a mistake in the file is reported before PyTorch loads.
    from server.privacy.forecast import forecast_privacy
    from server.privacy.forecast_text import describe
    from server.progress.display import make_progress
    from server.progress.events import Stage
    from server.simulation.forecast_inputs import find_inputs

    with make_progress() as display:
        inputs = find_inputs(config, counts, options.data, options.cache or default_cache(), display)
        forecast = forecast_privacy(
            config,
            inputs.patients,
            inputs.parameters,
            inputs.trained_parameters,
            lambda done, total: display(Stage("calculating the noise", done, total)),
        )
    if options.json:
        show(json.dumps(forecast.as_dict() | {"notes": list(inputs.notes)}, indent=2))
    else:
        show("\n".join([describe(forecast), *inputs.notes]))
    return 0


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"--patients {text}: give positive whole numbers, one per site, separated by commas: 117,37,23"
        )
    return [int(part) for part in parts]
