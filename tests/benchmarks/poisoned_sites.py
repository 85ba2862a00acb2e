"""What one lying site of three, and two of five, do to the released model, with default settings.

``python -m tests.benchmarks.poisoned_sites [--data Task04_Hippocampus]`` trains a small network on phantoms, or on 46
hippocampus scans, once without the liar and once with each kind of lie. Dice are the honest sites' own scores of the
released model. Last line: the worst ratio of one liar of three with the round in which each was noticed, and how many
claims of Dice and colluding pairs end as they must.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from common.config.federation import FederationConfig
from common.protocol.codec import Vector
from server.release.choice import choose, leave_out
from server.rounds import round_log
from server.simulation.simulated_sites import SimulatedSites
from tests.benchmarks._liars import Liar, Outcome, excerpt, only, prepare, run

CASES = [8, 8, 8, 8, 8]
PHANTOM = {"anatomy": "body", "shape": [20, 24, 20], "spacing_mm": 4.0}
BY_FILE = {"method": "column", "file": "sites.csv", "column": "site", "validation_fraction": 0.25}
"""The sites that made the phantoms, or those of ``HIPPOCAMPUS``."""


def config(simulation: dict[str, Any], seed: int = 3) -> FederationConfig:
    """The smallest federation that learns phantoms, or without phantoms the hippocampus, in twelve rounds."""
    is_phantom = "phantom" in simulation
    content = {
        "name": "poisoned",
        "rounds": 12,
        "seed": seed,
        "preprocessing": {"spacing": [4.0 if is_phantom else 2.5] * 3},
        "model": {"channels": [8, 16, 32], "groups": 4, "blocks": 1, "decoder_blocks": 1, "patch_size": [16, 20, 16]},
        "training": {
            "local_steps": 12 if is_phantom else 8,
            "batch_size": 1,
            "learning_rate": 0.01,
            "class_weights": [0.2, 1.0, 1.0, 1.0] if is_phantom else [0.2, 1.0, 1.0],
            "foreground_fraction": 0.8,
            "precision": "float32",
            "augmentation": None,
        },
        "simulation": simulation,
    }
    return FederationConfig.model_validate(content)


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


HIPPOCAMPUS = {
    "1-raw-low": ("raw-low", 12),
    "2-uint8": ("uint8", 10),
    "3-raw-high": ("raw-high", 8),
    "4-raw-low": ("raw-low", 8),
    "5-uint8": ("uint8", 8),
}
"""Site -> its acquisition group, and how many scans of it; the third is the one that lies alone."""


@dataclass
class Bench:
    """Runs federations of the same sites, and tells what became of each."""

    sites: SimulatedSites
    folder: Path
    trace: bool

    def run(self, title: str, count: int, liars: Mapping[str, Liar], reference: Outcome | None = None) -> Outcome:
        """The first sites, some of which lie; Dice are compared with the reference's."""
        outcome = run(only(self.sites, self.sites.names[:count]), liars, self.folder / "run")
        held = ", ".join(f"{name} after round {number}" for name, number in outcome.quarantine.items()) or "nobody"
        alarms = ", ".join(f"{about} ({number})" for about, number in outcome.alarms.items()) or "none"
        print(
            f"{title:44} Dice {outcome.dice:.3f} ({outcome.dice / (reference or outcome).dice:.2f} x), released round "
            f"{outcome.released}, in quarantine: {held}, alarms (round): {alarms}"
            + (f", ended: {outcome.ended}" if outcome.ended else ""),
            flush=True,
        )
        for line in outcome.rounds if self.trace else ():
            print(f"  round {line['round']}: " + "; ".join(_traced(*item) for item in line["sites"].items()))
        return outcome


def _traced(name: str, site: Mapping[str, Any]) -> str:
    numbers = (site[key] for key in ("mean_dice", "length", "scale", "cosine"))
    return " ".join([name, site["reason"] or site["status"], *("-" if x is None else f"{x:.2f}" for x in numbers)])


def one_of_three(bench: Bench, wanted: str) -> str:
    """The worst ratio of all lies about updates and patients, and in which rounds they were noticed."""
    without = bench.run("two honest sites", 2, {})
    ratios, caught = [], []
    liar = bench.sites.names[2]
    for title, lie in ONE_OF_THREE.items():
        if wanted in title:
            outcome = bench.run(f"one of three: {title}", 3, {liar: lie}, without)
            ratios.append(outcome.dice / without.dice)
            caught.append(outcome.caught([liar]))
    rounds = ", ".join(str(number or "never") for number in caught)
    return f"one of three: at least {min(ratios):.2f} x, in quarantine or an alarm after round {rounds}"


def claims(bench: Bench, wanted: str) -> str:
    """Whether a claimed Dice changes the released round, and what the honest sites lose by it without an alarm."""
    same, losses = 0, [0.0]
    liar = bench.sites.names[2]
    told = [title for title in CLAIMS if wanted in title]
    for title in told:
        outcome = bench.run(f"one of three: {title}", 3, {liar: CLAIMS[title]})
        scores = {line["model_round"]: leave_out(round_log.scores(line), [liar]) for line in outcome.rounds}
        without = choose(scores, scores)
        assert without is not None
        same += outcome.released == without.round
        if not outcome.alarms:
            losses.append(mean(scores[without.round].values()) - mean(scores[outcome.released].values()))
    return f"claims of Dice: same round in {same} of {len(told)}, or an alarm, or a loss of at most {max(losses):.3f}"


def two_of_five(bench: Bench, wanted: str) -> str:
    """In how many cases both colluders are named within three rounds."""
    honest = bench.run("three honest sites", 3, {})
    liars = bench.sites.names[3:5]
    found = [
        bench.run(f"two of five: {title}", 5, dict.fromkeys(liars, liar), honest).caught(liars)
        for title, liar in TWO_OF_FIVE.items()
        if wanted in title
    ]
    early = sum(number is not None and number <= 3 for number in found)
    return f"two of five: in quarantine or an alarm within three rounds in {early} of {len(found)}"


PARTS = {"one": one_of_three, "claims": claims, "two": two_of_five}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="Task04_Hippocampus, of which 46 scans are used; phantoms without it")
    parser.add_argument("--part", choices=PARTS, help="one of three, claims of Dice, or two of five; all without it")
    parser.add_argument("--only", default="", help="only lies with this text in their title")
    parser.add_argument("--trace", action="store_true", help="every site in every round: Dice, length, scale, cosine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        data = excerpt(options.data, folder / "excerpt", HIPPOCAMPUS) if options.data else None
        phantom = {} if data else {"phantom": PHANTOM | {"cases_per_site": CASES}}
        sites = prepare(config(phantom | {"partition": BY_FILE}), folder / "data", data)
        bench = Bench(sites, folder, options.trace)
        parts = [options.part] if options.part else list(PARTS)
        print("; ".join([PARTS[part](bench, options.only) for part in parts]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
