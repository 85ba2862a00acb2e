"""The command of ``fedvox-server`` that compares a federation with its baselines."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from common.system.cli import add_command, add_device, default_cache, show
from server.cli.privacy import add_set

COMPARE_EXAMPLES = (
    "deploy/examples/phantom.yaml --arms local,pooled,fedavg --seeds 1 --out runs/compared",
    "deploy/examples/hippocampus.yaml --data Task04_Hippocampus --arms local,pooled,fedavg,fedprox --seeds 3",
)


def add_compare_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``compare``."""
    text = "compare algorithms with each other, each site alone, and pooled data"
    compare = add_command(commands, "compare", _compare, text, *COMPARE_EXAMPLES)
    compare.add_argument("federation", type=Path, metavar="FEDERATION.yaml", help="the federation file")
    compare.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (default: the file's phantoms)")
    compare.add_argument(
        "--arms",
        default="local,pooled,fedavg",
        metavar="ARM,...",
        help="local, pooled, or a name of strategy.name (default: local,pooled,fedavg)",
    )
    compare.add_argument(
        "--set-arm",
        action="append",
        default=[],
        metavar="ARM:KEY.PATH=VALUE",
        help="replace one value in one arm, or in a variant of it (fedprox@strong)",
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of every arm (default: 3)")
    compare.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the comparison; one that exists is continued"
    )
    compare.add_argument("--engine", choices=["inline", "ray"], help="default: the federation file's")
    compare.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster, such as ray://head:10001")
    compare.add_argument(
        "--no-contributions", action="store_true", help="do not find out what each site contributed to fedavg"
    )
    add_device(compare)
    add_set(compare)
    compare.add_argument("--cache", type=Path, metavar="DIR", help="for preprocessed scans (default: $FEDVOX_CACHE)")
    compare.add_argument("--no-cache", action="store_true", help="keep preprocessed scans in memory only")


def _compare(options: argparse.Namespace) -> int:
    from common.config.federation import load_federation
    from server.comparison.arms import parse_arms, seeds_from

    config = load_federation(options.federation, options.set)
    arms, seeds = parse_arms(options.arms, options.set_arm), seeds_from(config, options.seeds)
    from server.comparison.compare import compare
    from server.progress.display import make_progress
    from server.simulation.experiment import SimulationOptions
    from server.simulation.leftovers import RESULTS_FILE

    out = options.out or Path("runs") / f"{config.name}-comparison-{datetime.now():%Y%m%d-%H%M%S}"
    cache = None if options.no_cache else options.cache or default_cache()
    chosen = SimulationOptions(
        options.data, out, options.engine, options.device, cache, ray_address=options.ray_address
    )
    with make_progress() as display:
        try:
            report, complete = compare(config, arms, seeds, chosen, display, not options.no_contributions)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; finished work is kept. To continue, repeat the command with --out {out}"
            ) from None
    results = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
    for row in results["arms"]:
        dice = row["dice"]
        span = f" ({dice['low']:.3f} to {dice['high']:.3f})" if dice and dice["low"] is not None else ""
        show(f"{row['arm']}: mean Dice {dice['value']:.3f}{span}" if dice else f"{row['arm']}: no score")
    if results["verdict"]:
        show(results["verdict"])
    for row in results["against_alone"]:
        if row["worse"]:
            shown = "worse than alone" if row["clearly_worse"] else "worse than alone on average"
            doubt = "; too few patients to tell" if row["too_few"] else ""
            show(f"{row['arm']} at {row['site']}: {shown}, by {-row['difference']['value']:.3f}{doubt}")
    show(f"report: {report}")
    return 0 if complete else 1
