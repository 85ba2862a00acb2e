"""What differential privacy costs in Dice, by the commands that a researcher uses.

``python -m tests.benchmarks.privacy_utility`` trains a model on synthetic volumes of one scanner, and runs
``deploy/examples/phantom-private.yaml`` from it: 2,000 synthetic patients at four sites with four scanners. Beside it
the same federation without privacy, with settings that suit it: all weights, AdamW, eight times as many steps. Last
line: Dice with privacy, Dice without, their ratio, and the seconds of the private run.

``python -m tests.benchmarks.privacy_utility hippocampus [SEEDS] [DATASET]`` runs
``deploy/examples/hippocampus-private.yaml`` at epsilon 1, 3, 8, 32 and none, started from such a model and from
nothing, and holds the ratio of signal to noise that ``plan-privacy`` foretells against the Dice that was measured;
last line: Spearman's rank correlation of the two. Hours on two cores.

All Dice are exact, of the released model on the validation patients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import spearmanr

from server.sweep_result import read_result
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
EPSILONS = ("1", "3", "8", "32", "inf")


def fedvox_server(*arguments: object) -> str:
    command = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout


def sweep(federation: Path, out: Path, cache: Path, values: Sequence[str], *more: object) -> dict[str, dict[str, Any]]:
    """The results of a sweep over epsilon, by value."""
    item = f"privacy.epsilon={','.join(values)}"
    fedvox_server("simulate", federation, "--out", out, "--cache", cache, "--sweep", item, *more)
    runs = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["runs"]
    return {run["value"]: run for run in runs}


def phantoms(folder: Path) -> None:
    federation, cache = EXAMPLES / "phantom-private.yaml", folder / "cache"
    start = pretrain(folder, cache)
    forecast = json.loads(fedvox_server("plan-privacy", federation, "--json"))
    fedvox_server("simulate", federation, "--out", folder / "private", "--cache", cache, "--set", start)
    sets = [part for setting in (start, *WITHOUT_PRIVACY) for part in ("--set", setting)]
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


def pretrain(folder: Path, cache: Path) -> str:
    """Trains a model on synthetic volumes of one scanner; the ``--set`` item that starts from it."""
    out = folder / "pretraining"
    fedvox_server("simulate", EXAMPLES / "phantom-pretraining.yaml", "--out", out, "--cache", cache)
    return f"initial_model={out / 'model'}"


def hippocampus(folder: Path, seeds: int, dataset: Path) -> None:
    cache = folder / "cache"
    starts = {"warm": (pretrain(folder, cache),), "cold": ("initial_model=null", "training.trainable=all")}
    federation, foretold, measured = EXAMPLES / "hippocampus-private.yaml", [], []
    for start, settings in starts.items():
        sets = [part for setting in settings for part in ("--set", setting)]
        scores: dict[str, list[float]] = {value: [] for value in EPSILONS}
        for seed in range(seeds):
            out = folder / f"{start}-{seed}"
            found = sweep(federation, out, cache, EPSILONS, "--data", dataset, *sets, "--set", f"seed={seed}")
            for value, run in found.items():
                scores[value].append(run["mean_dice"])
        for value, dice in scores.items():
            ratio = ""
            if value != "inf":
                asked = ("--data", dataset, "--cache", cache, *sets, "--set", f"privacy.epsilon={value}", "--json")
                forecast = json.loads(fedvox_server("plan-privacy", federation, *asked))
                foretold.append(forecast["planned"]["signal_to_noise"])
                measured.append(mean(dice))
                ratio = f"signal-to-noise foretold {foretold[-1]:.2f}"
            print(
                f"{start} start, epsilon {value:>4}: {' '.join(f'{score:.3f}' for score in dice)}  {ratio}", flush=True
            )
    print(f"privacy_utility: {spearmanr(foretold, measured).statistic:.3f}")


def main(arguments: Sequence[str]) -> None:
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    with tempfile.TemporaryDirectory() as folder:
        if arguments and arguments[0] == "hippocampus":
            seeds = int(arguments[1]) if len(arguments) > 1 else 3
            dataset = Path(arguments[2]) if len(arguments) > 2 else data / "Task04_Hippocampus"
            hippocampus(Path(folder), seeds, dataset)
        else:
            phantoms(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
