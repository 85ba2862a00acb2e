"""What differential privacy costs in Dice, by the commands that a researcher uses.

``python -m tests.benchmarks.privacy_utility`` trains a model on synthetic volumes of one scanner, and runs
``deploy/examples/phantom-private.yaml`` from it: 2,000 synthetic patients at four sites with four scanners. Beside it
the same federation without privacy, with settings that suit it: all weights, AdamW, eight times as many steps. Last
line: Dice with privacy, Dice without, their ratio, and the seconds of the private run.

``python -m tests.benchmarks.privacy_utility hippocampus [--seeds 3] [--data DATASET] [--out FOLDER]`` runs
``deploy/examples/hippocampus-private.yaml`` at epsilon 1, 3, 8 and 32, started from a model that was trained on
synthetic volumes (``deploy/examples/hippocampus-pretraining.yaml``) and from nothing, beside both the same network
without privacy, and holds the ratio of signal to noise that ``plan-privacy`` foretells against the Dice that was
measured. What is finished in the folder is not repeated; its ``report.html`` shows the curve so far. Last line:
Spearman's rank correlation of the Dice with the ratio relative to what the start needs, over all private settings; with
the ratio itself, which does not know the start, over all, over those that start from the model, and the others.

All Dice are exact, of the released model on the validation patients.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import spearmanr

from server.reporting.sweep_result import read_result
from tests.benchmarks._privacy_curve import Point, write_curve
from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "deploy" / "examples"
WITHOUT_PRIVACY = (
    "privacy=null",
    "training.trainable=all",
    "training.optimizer=adamw",
    "training.learning_rate=0.003",
    "training.weight_decay=0.01",
    "training.local_steps=40",
    "training.batch_size=4",
)
EPSILONS = ("1", "3", "8", "32")
NONE = "none"
SEVERAL_HUNDRED_STEPS = (*WITHOUT_PRIVACY, "rounds=5", "training.batch_size=2")


def fedvox_server(*arguments: object) -> str:
    """Standard output of the command; what else it says is shown if it fails."""
    command = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nfailed with status {done.returncode}: {' '.join(command)}")
    return done.stdout


def set_options(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def phantoms(folder: Path) -> None:
    federation, cache = EXAMPLES / "phantom-private.yaml", folder / "cache"
    start = pretrain("phantom-pretraining.yaml", folder, cache)
    forecast = json.loads(fedvox_server("plan-privacy", federation, "--json"))
    fedvox_server("simulate", federation, "--out", folder / "private", "--cache", cache, "--set", start)
    sets = set_options((start, *WITHOUT_PRIVACY))
    data = folder / "private" / "phantoms"
    fedvox_server("simulate", federation, "--data", data, "--out", folder / "plain", "--cache", cache, *sets)
    private, plain = read_result(folder / "private"), read_result(folder / "plain")
    first = json.loads((folder / "plain" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[0])
    print(f"the model to start from        mean Dice {first['mean_dice']:.3f}")
    for name, run in (("differentially private", private), ("without privacy", plain)):
        print(f"{name:<30} mean Dice {run['mean_dice']:.3f} {run['sites']}, {run['seconds']:.0f} s")
    print(f"signal-to-noise foretold: {forecast['planned']['signal_to_noise']:.2f} ({forecast['verdict']})")
    ratio = private["mean_dice"] / plain["mean_dice"]
    print(
        f"privacy_utility: {private['mean_dice']:.3f} {plain['mean_dice']:.3f} {ratio:.3f} {private['seconds']:.0f} s"
    )


def pretrain(example: str, folder: Path, cache: Path) -> str:
    """Trains a model on synthetic volumes, unless it is there; the ``--set`` item that starts from it."""
    out = folder / "pretraining"
    if not (out / "model").exists():
        fedvox_server("simulate", EXAMPLES / example, "--out", out, "--cache", cache, "--resume")
    return f"initial_model={out / 'model'}"


def hippocampus(folder: Path, seeds: int, dataset: Path) -> None:
    cache, federation = folder / "cache", EXAMPLES / "hippocampus-private.yaml"
    starts = {"warm": (pretrain("hippocampus-pretraining.yaml", folder, cache),), "cold": ("initial_model=null",)}
    points = [Point(start, epsilon) for start in starts for epsilon in (*EPSILONS, NONE)]
    for seed in range(seeds):
        for point in points:
            out = folder / f"{point.start}-{point.epsilon}-seed-{seed}"
            privacy = SEVERAL_HUNDRED_STEPS if point.epsilon == NONE else (f"privacy.epsilon={point.epsilon}",)
            sets = set_options((*starts[point.start], *privacy, f"seed={seed}"))
            if read_result(out)["status"] != "finished":
                common = ("--data", dataset, "--cache", cache, "--out", out, "--resume")
                fedvox_server("simulate", federation, *common, *sets)
            run = read_result(out)
            point.dice.append(run["mean_dice"])
            # What plan-privacy says of the same federation, without its alternatives.
            point.foretold = json.loads((out / "summary.json").read_text(encoding="utf-8"))["privacy"]
            print(
                f"seed {seed}, {point.start} start, epsilon {point.epsilon:>4}: mean Dice {run['mean_dice']:.3f}, "
                f"{run['seconds']:.0f} s",
                flush=True,
            )
            write_curve(folder / "report.html", points)
    for point in points:
        print(point.describe())
    print(f"the curve is drawn in {folder / 'report.html'}")
    warm, cold = ([point for point in points if point.start == start] for start in starts)
    ranks = [
        rank_correlation(points, "share_of_enough"),
        *(rank_correlation(some, "signal_to_noise") for some in (points, warm, cold)),
    ]
    print("privacy_utility: " + " ".join(f"{rank:.3f}" for rank in ranks))


def rank_correlation(points: Sequence[Point], key: str) -> float:
    """Spearman's, of what was foretold and the mean Dice of the private settings among the points."""
    private = [(point.foretold[key], point.mean) for point in points if point.foretold is not None]
    foretold, reached = ([pair[side] for pair in private] for side in (0, 1))
    return float(spearmanr(foretold, reached).statistic)


def main(arguments: Sequence[str]) -> None:
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.privacy_utility")
    parser.add_argument("what", nargs="?", choices=("phantoms", "hippocampus"), default="phantoms")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=data / "Task04_Hippocampus")
    parser.add_argument("--out", type=Path, help="folder that keeps all runs; without it they are deleted")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.out or Path(temporary)
        if chosen.what == "hippocampus":
            hippocampus(folder, chosen.seeds, chosen.data)
        else:
            phantoms(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
