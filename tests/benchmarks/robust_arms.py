"""What lying sites among five do to the model of FedAvg and of every robust algorithm.

``python -m tests.benchmarks.robust_arms [--data Task04_Hippocampus] [--arms fedavg,median] [--seeds 3,4]`` trains a
small network on phantoms, or on 46 hippocampus scans, for each algorithm with five honest sites, with one that lies in
one of three ways, and with two that lie in the same way. What comes before every algorithm, such as bounds on lengths
and quarantine, is on, as in every federation. Dice are the honest sites' own scores of the released model,
compared with what the same sites reach with the same algorithm when all five are honest. Last line: the worst ratio of
FedAvg and of each robust algorithm with one liar, and the best algorithm with two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np

from common.config.federation import FederationConfig
from common.protocol.codec import Vector
from server.simulation.simulated_sites import SimulatedSites
from tests.benchmarks._liars import Liar, excerpt, prepare, run
from tests.benchmarks.poisoned_sites import BY_FILE, CASES, HIPPOCAMPUS, PHANTOM, config, flipped, growing

FEDAVG = "fedavg"
ARMS: Mapping[str, Mapping[str, object]] = {
    FEDAVG: {},
    "median": {},
    "trimmed_mean": {"malicious_sites": 1},
    "trimmed_mean_2": {"name": "trimmed_mean", "malicious_sites": 2},
    "multi_krum": {"malicious_sites": 1},
    "geometric_median": {},
    "clipped_mean": {},
}
NOISE = np.random.default_rng(7)


def noise(round_number: int, update: Vector, before: Vector | None) -> Vector:
    """Random numbers, ten times as long as the honest update."""
    drawn = NOISE.standard_normal(update.size).astype(np.float32)
    return drawn * np.float32(10 * np.linalg.norm(update) / np.linalg.norm(drawn))


ONE = {
    "random, 10 x as long": Liar(noise),
    "sign flipped, length 1": flipped(1),
    "sign flipped, growing by 5 % a round": Liar(growing),
}
TWO = {"two, sign flipped, length 1": flipped(1)}


def ratios(sites: SimulatedSites, arm: str, folder: Path) -> dict[str, float]:
    """Lie -> the honest sites' Dice, as a multiple of what they reach among five honest sites; prints each."""
    clean = run(sites, {}, folder / "run")
    if clean.ended:
        raise SystemExit(f"{arm}: five honest sites ended: {clean.ended}")
    names = sites.names
    found = {}
    for lies, liars in ((ONE, names[2:3]), (TWO, names[3:5])):
        honest = [name for name in names if name not in liars]
        line = next(line for line in clean.rounds if line["model_round"] == clean.released)
        before = mean(line["sites"][name]["mean_dice"] for name in honest)
        for title, lie in lies.items():
            outcome = run(sites, dict.fromkeys(liars, lie), folder / "run")
            found[title] = outcome.dice / before
            held = ", ".join(f"{name} after round {number}" for name, number in outcome.quarantine.items()) or "nobody"
            print(
                f"{arm:18} {title:38} Dice {outcome.dice:.3f}, honest {before:.3f}: {found[title]:.3f} x; "
                f"in quarantine: {held}" + (f"; ended: {outcome.ended}" if outcome.ended else ""),
                flush=True,
            )
    return found


def of_arm(base: FederationConfig, arm: str) -> FederationConfig:
    """The same federation with another algorithm."""
    return base.model_copy(update={"strategy": type(base.strategy).model_validate({"name": arm, **ARMS[arm]})})


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="Task04_Hippocampus, of which 46 scans are used; phantoms without it")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="3")
    options = parser.parse_args(arguments)
    arms, seeds = options.arms.split(","), [int(seed) for seed in options.seeds.split(",")]
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        data = excerpt(options.data, folder / "excerpt", HIPPOCAMPUS) if options.data else None
        phantom = {} if data else {"phantom": PHANTOM | {"cases_per_site": CASES}}
        for seed in seeds:
            base = config(phantom | {"partition": BY_FILE}, seed)
            sites = prepare(base, folder / f"data-{seed}", data)
            for arm in arms:
                found[arm].append(
                    ratios(replace(sites, config=of_arm(base, arm), _opened={}, _trainer=None), arm, folder)
                )
    worst = {arm: min(median(one[lie] for one in found[arm]) for lie in ONE) for arm in arms}
    two = {arm: min(median(one[lie] for one in found[arm]) for lie in TWO) for arm in arms}
    best = max(two, key=lambda arm: two[arm])
    rows = ", ".join(f"{arm} {value:.2f} x" for arm, value in worst.items())
    print(f"one of five, worst lie: {rows}; two of five: best {best} {two[best]:.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
