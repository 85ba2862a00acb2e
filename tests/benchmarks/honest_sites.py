"""Honest sites that differ as hospitals do: nobody may be quarantined, and nobody named alone.

``python -m tests.benchmarks.honest_sites`` runs 20 seeded simulations on phantoms: scanners of their own (natural), a
label skew with Dirichlet 0.1, a scanner shift, and one site with three patients; with ``--data Task04_Hippocampus``
the first two on real scans, by acquisition group. Last line: how many honest sites were quarantined, which alarms were
raised, and the lowest cosine and the longest update of an honest site.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tests.benchmarks._liars import Outcome, excerpt, only, prepare, run
from tests.benchmarks.poisoned_sites import BY_FILE, HIPPOCAMPUS, PHANTOM, config

SEEDS = range(5)
SPLITS: dict[str, dict[str, Any]] = {
    "natural": {
        "phantom": PHANTOM | {"cases_per_site": [8, 8, 8, 8]},
        "partition": BY_FILE,
    },
    "dirichlet": {
        "phantom": PHANTOM | {"cases_per_site": [32]},
        "partition": {"method": "label", "sites": 4, "alpha": 0.1, "minimum": 2, "validation_fraction": 0.25},
    },
    "scanner": {
        "phantom": PHANTOM | {"cases_per_site": [24]},
        "partition": {"method": "scanner", "sites": 3, "strength": 2.0, "validation_fraction": 0.25},
    },
    "three-patients": {
        "phantom": PHANTOM | {"cases_per_site": [12, 12, 4]},
        "partition": BY_FILE,
    },
}
REAL_SPLITS = ["natural", "dirichlet"]


@dataclass
class Tally:
    """What happened to honest sites in all simulations."""

    runs: int = 0
    quarantined: int = 0
    alarms: Counter[str] = field(default_factory=Counter)
    lowest: float = 1.0
    longest: float = 1.0

    def add(self, title: str, outcome: Outcome) -> None:
        parts = [line["sites"] for line in outcome.rounds if line["phase"] == "train"]
        cosines = [site["cosine"] for line in parts for site in line.values() if site["cosine"] is not None]
        lengths = [[site["length"] for site in line.values() if site["length"]] for line in parts]
        ratios = [max(several) / min(several) for several in lengths if several]
        scales = [site["scale"] for line in parts for site in line.values() if site["scale"] is not None]
        alarms = ", ".join(f"{about} ({number})" for about, number in outcome.alarms.items()) or "none"
        print(
            f"{title:38}: Dice {outcome.dice:.3f}, quarantined {len(outcome.quarantine)}, alarms (round): {alarms}, "
            f"lowest cosine {min(cosines):.2f}, longest update {max(ratios):.2f} x the shortest, scaled "
            f"{sum(scale < 1 for scale in scales)} of {len(scales)}",
            flush=True,
        )
        self.runs += 1
        self.quarantined += len(outcome.quarantine)
        self.alarms.update({about.partition(" ")[0] for about in outcome.alarms})
        self.lowest, self.longest = min(self.lowest, *cosines), max(self.longest, *ratios)

    def __str__(self) -> str:
        alarms = ", ".join(f"{about} in {count}" for about, count in self.alarms.items()) or "none"
        return (
            f"honest sites quarantined in {self.runs} runs: {self.quarantined}; alarms: {alarms}; lowest cosine "
            f"{self.lowest:.2f}; longest update {self.longest:.2f} x the shortest of its round"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="Task04_Hippocampus, of which 46 scans are used; phantoms without it")
    parser.add_argument("--split", choices=SPLITS, action="append", help="only this split; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    splits = options.split or (REAL_SPLITS if options.data else list(SPLITS))
    tally = Tally()
    for split, seed in product(splits, options.seeds):
        simulation = {"partition": SPLITS[split]["partition"]}
        if not options.data:
            simulation["phantom"] = SPLITS[split]["phantom"] | {"seed": seed}
        with tempfile.TemporaryDirectory() as root:
            data = excerpt(options.data, Path(root) / "excerpt", HIPPOCAMPUS) if options.data else None
            sites = prepare(config(simulation, seed), Path(root) / "data", data)
            tally.add(f"{split}, seed {seed}", run(only(sites, sites.names), {}, Path(root) / "run"))
    print(tally)
    return 0


if __name__ == "__main__":
    sys.exit(main())
