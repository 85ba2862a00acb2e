"""The command of ``fedvox-server`` that says, before anything is trained, what a privacy budget allows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.system.cli import default_cache

PLAN_EXAMPLE = """\
example:
  fedvox-server plan-privacy deploy/examples/phantom-private.yaml
  fedvox-server plan-privacy federation.yaml --patients 117,37,23 --set privacy.epsilon=3 --json
"""


def add_privacy_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``plan-privacy``."""
    plan = commands.add_parser(
        "plan-privacy", help="noise, epsilon and expected signal of a private federation", epilog=PLAN_EXAMPLE
    )
    plan.add_argument("federation", type=Path, metavar="FEDERATION.yaml", help="with a privacy section")
    plan.add_argument(
        "--patients",
        metavar="N,N,...",
        help="patients that each site trains on (default: from --data, else the phantoms of the file)",
    )
    plan.add_argument("--data", type=Path, metavar="DIR", help="dataset folder, shared out as simulate would")
    plan.add_argument("--cache", type=Path, metavar="DIR", help="what was read of --data (default: $FEDVOX_CACHE)")
    plan.add_argument("--json", action="store_true", help="for machines")
    plan.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="replace one value of the federation file"
    )
    plan.set_defaults(command=_plan_privacy)


def _plan_privacy(options: argparse.Namespace) -> int:
    from common.config.federation import load_federation

    config = load_federation(options.federation, options.set)
    counts = None if options.patients is None else _counts(options.patients)
    # Torch and the accountants, which a mistake in the file need not wait for.
    from server.privacy.forecast import describe, forecast_privacy
    from server.progress.display import make_progress
    from server.simulation.forecast_inputs import find_inputs

    with make_progress() as display:
        inputs = find_inputs(config, counts, options.data, options.cache or default_cache(), display)
        forecast = forecast_privacy(
            config,
            inputs.patients,
            inputs.parameters,
            inputs.trained_parameters,
            lambda done, total: display.stage("calculating the noise", done, total),
        )
    if options.json:
        print(json.dumps(forecast.as_dict() | {"notes": list(inputs.notes)}, indent=2))
    else:
        print("\n".join([describe(forecast), *inputs.notes]))
    return 0


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"--patients {text}: write whole numbers above 0, one for every site, separated by commas: 117,37,23"
        )
    return [int(part) for part in parts]
