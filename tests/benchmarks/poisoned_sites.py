"""What one lying site of three, and two of five, do to the released model, with default settings.

``python -m tests.benchmarks.poisoned_sites [--data DATASET]`` trains a small network on phantoms, or on a dataset, once
without the liar and once with each kind of lie. Dice are the honest sites' own scores of the released model. Last line:
the worst ratio of one liar of three, and how many of the cases that must end in quarantine or an alarm do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from common.config.federation import FederationConfig
from common.protocol.codec import Vector
from tests.benchmarks._liars import Liar, Outcome, only, prepare, run

ROUNDS = 12
CONFIG = {
    "name": "poisoned",
    "rounds": ROUNDS,
    "seed": 3,
    "preprocessing": {"spacing": [2.0, 2.0, 2.0]},
    "model": {"channels": [8, 16, 32], "groups": 4, "blocks": 1, "decoder_blocks": 1, "patch_size": [16, 24, 16]},
    "training": {
        "local_steps": 16,
        "batch_size": 2,
        "learning_rate": 0.004,
        "precision": "float32",
        "augmentation": None,
    },
    "simulation": {
        "phantom": {"anatomy": "bent_tube", "cases_per_site": [8, 8, 8, 8, 8], "shape": [20, 28, 20]},
        "partition": {"method": "column", "file": "sites.csv", "column": "site", "validation_fraction": 0.25},
    },
}


def flipped(length: float) -> Liar:
    return Liar(lambda round_number, update, before: -length * update)


def growing(round_number: int, update: Vector, before: Vector | None) -> Vector:
    return -(1.05**round_number) * update


def again(round_number: int, update: Vector, before: Vector | None) -> Vector:
    return update if before is None else before


def alternating(round_number: int, update: Vector, before: Vector | None) -> Vector:
    return -4.5 * update if round_number % 2 else update


ONE_OF_THREE = {
    "sign flipped, length 1": flipped(1),
    "sign flipped, length 2": flipped(2),
    "sign flipped, length 4.5": flipped(4.5),
    "sign flipped, a million patients": Liar(flipped(1).update, patients=10**6),
    "sign flipped, growing by 5 % a round": Liar(growing),
    "zero": Liar(lambda round_number, update, before: np.zeros_like(update)),
    "last round's again": Liar(again),
    "sign flipped in every other round": Liar(alternating),
}
CLAIMS = {
    "claims Dice 1.0 always": Liar(dice=lambda round_number: 1.0),
    "claims Dice 1.0 for the first model, 0 then": Liar(dice=lambda round_number: float(round_number == 1)),
}
TWO_OF_FIVE = {"sign flipped, length 1": flipped(1), "sign flipped, length 4.5": flipped(4.5)}


def describe(title: str, outcome: Outcome, reference: Outcome) -> None:
    held = ", ".join(f"{name} after round {number}" for name, number in outcome.quarantine.items()) or "nobody"
    print(
        f"{title:44} Dice {outcome.dice:.3f} ({outcome.dice / reference.dice:.2f} x), released round "
        f"{outcome.released}, in quarantine: {held}, alarms: {len(outcome.alarms)}"
        + (f", ended: {outcome.ended}" if outcome.ended else ""),
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        sites = prepare(FederationConfig.model_validate(CONFIG), folder / "data", options.data)
        names = sites.names
        three, five = only(sites, names[:3]), only(sites, names[:5])
        without = run(only(sites, names[:2]), {}, folder / "run")
        describe("two honest sites", without, without)
        ratios, same_round = [], 0
        for title, liar in ONE_OF_THREE.items():
            outcome = run(three, {names[2]: liar}, folder / "run")
            describe(f"one of three: {title}", outcome, without)
            ratios.append(outcome.dice / without.dice)
        honest = run(three, {}, folder / "run")
        describe("three honest sites", honest, without)
        for title, liar in CLAIMS.items():
            outcome = run(three, {names[2]: liar}, folder / "run")
            describe(f"one of three: {title}", outcome, without)
            same_round += outcome.released == honest.released or bool(outcome.alarms)
        caught = 0
        honest = run(only(sites, names[:3]), {}, folder / "run")
        for title, liar in TWO_OF_FIVE.items():
            outcome = run(five, dict.fromkeys(names[3:5], liar), folder / "run")
            describe(f"two of five: {title}", outcome, honest)
            caught += len(outcome.quarantine) == 2 and max(outcome.quarantine.values()) <= 3
    print(
        f"one of three: at least {min(ratios):.2f} x; claims of Dice without effect or with an alarm: {same_round} of "
        f"{len(CLAIMS)}; two of five in quarantine within three rounds: {caught} of {len(TWO_OF_FIVE)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
