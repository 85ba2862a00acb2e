"""``fedvox-server compare`` on the real hippocampus scans: three natural sites, or a hard split.

``python -m tests.benchmarks.comparison [--split natural|hard] [--arms ...] [--seeds N] [--out DIR] [--data DATASET]
[--set KEY=VALUE ...] [--set-arm ARM:KEY=VALUE ...]``. The hard split has four sites: a Dirichlet draw of 0.1 over the
labelled volume, and another scanner each. With ``--out`` it continues what is there. Last line: the best federated
arm, its mean Dice over patients, its share of pooled training's, and its margin over FedAvg, each with its 95 %
interval; before it, its share of pooled training's mean of sites.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.cli.entry import main as fedvox_server
from tests.conftest import REPOSITORY

HARD = ("alpha=0.1", "strength=1.0")
SPLITS = {
    "natural": ("hippocampus.yaml", []),
    "hard": ("hippocampus-dirichlet.yaml", [f"--set=simulation.partition.{change}" for change in HARD]),
}


def main(arguments: Sequence[str]) -> None:
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    parser = argparse.ArgumentParser()
    parser.add_argument("--split", choices=SPLITS, default="natural")
    parser.add_argument("--arms", default="local,pooled,fedavg")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, default=data / "Task04_Hippocampus")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--set-arm", action="append", default=[])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        show(options.split, compare(options, options.out or Path(folder) / "comparison"))


def compare(options: argparse.Namespace, out: Path) -> Mapping[str, Any]:
    file, changes = SPLITS[options.split]
    command = ["compare", REPOSITORY / "deploy" / "examples" / file]
    command += ["--data", options.data, "--arms", options.arms, "--seeds", options.seeds, "--out", out, *changes]
    command += [f"--set={change}" for change in options.set]
    command += [f"--set-arm={change}" for change in options.set_arm]
    # In this process, so that a signal to it ends the comparison too.
    if status := fedvox_server([*map(str, command)]):
        sys.exit(status)
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return results


def show(split: str, results: Mapping[str, Any]) -> None:
    for row in results["arms"]:
        spread = "" if row["sd_over_seeds"] is None else f", sd over seeds {row['sd_over_seeds']:.4f}"
        print(f"{row['arm']:<18} Dice {interval(row['dice'])}, of sites {row['dice_of_sites']['value']:.4f}{spread}")
    for row in results["against_reference"]:
        print(f"{row['arm']:<18} - fedavg {interval(row['difference'])}, p {row['p']:.4f}, Holm {row['p_holm']:.4f}")
    for row in results["against_alone"]:
        print(f"{row['arm']:<18} - alone at {row['site']}: {interval(row['difference'])}{' WORSE' * row['worse']}")
    print(results["verdict"] or "nothing is compared with fedavg")
    best = results["best"]
    if best is None:
        print(f"comparison, {split}: no federated arm")
        return
    share, of_sites = (interval(best.get(f"ratio_to_pooled{which}")) for which in ("", "_of_sites"))
    print(f"share of pooled training's mean of sites {of_sites}")
    margin = interval(best.get("margin"))
    print(f"comparison, {split}: {best['arm']} {interval(best['dice'])} of pooled {share} margin {margin}")


def interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['value']:.4f}" + ("" if found["low"] is None else f" ({found['low']:.4f} to {found['high']:.4f})")


if __name__ == "__main__":
    main(sys.argv[1:])
