"""Honest sites that differ as hospitals do: nobody may be quarantined, and nobody named alone.

``python -m tests.benchmarks.honest_sites`` runs 20 seeded simulations on phantoms: scanners of their own (natural), a
label skew with Dirichlet 0.1, a scanner shift, and one site with three patients. Last line: how many honest sites were
quarantined, how many runs raised an alarm, and the lowest cosine and the longest update of an honest site.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from common.config.federation import FederationConfig
from tests.benchmarks._liars import only, prepare, run
from tests.benchmarks.poisoned_sites import CONFIG

SEEDS = range(5)
PHANTOM = {"anatomy": "bent_tube", "shape": [20, 28, 20]}
SPLITS: dict[str, dict[str, Any]] = {
    "natural": {
        "phantom": PHANTOM | {"cases_per_site": [8, 8, 8, 8]},
        "partition": {"method": "column", "file": "sites.csv", "column": "site", "validation_fraction": 0.25},
    },
    "Dirichlet 0.1": {
        "phantom": PHANTOM | {"cases_per_site": [32]},
        "partition": {"method": "label", "sites": 4, "alpha": 0.1, "minimum": 2, "validation_fraction": 0.25},
    },
    "scanner shift": {
        "phantom": PHANTOM | {"cases_per_site": [24]},
        "partition": {"method": "scanner", "sites": 3, "strength": 2.0, "validation_fraction": 0.25},
    },
    "one site with three patients": {
        "phantom": PHANTOM | {"cases_per_site": [12, 12, 4]},
        "partition": {"method": "column", "file": "sites.csv", "column": "site", "validation_fraction": 0.25},
    },
}


def main() -> int:
    quarantined, alarmed, lowest, longest = 0, 0, 1.0, 0.0
    for title, simulation in SPLITS.items():
        for seed in SEEDS:
            phantom = simulation["phantom"] | {"seed": seed}
            config = FederationConfig.model_validate(
                CONFIG | {"seed": seed, "simulation": simulation | {"phantom": phantom}}
            )
            with tempfile.TemporaryDirectory() as root:
                sites = prepare(config, Path(root) / "data")
                outcome = run(only(sites, sites.names), {}, Path(root) / "run")
            parts = [line["sites"] for line in outcome.rounds if line["phase"] == "train"]
            cosines = [site["cosine"] for line in parts for site in line.values() if site["cosine"] is not None]
            lengths = [
                site["length"] / min(_lengths(line)) for line in parts for site in line.values() if site["length"]
            ]
            scaled = sum(
                1 for line in parts for site in line.values() if site["scale"] is not None and site["scale"] < 1
            )
            print(
                f"{title:30} seed {seed}: Dice {outcome.dice:.3f}, quarantined {len(outcome.quarantine)}, alarms "
                f"{len(outcome.alarms)}, lowest cosine {min(cosines):.2f}, longest update {max(lengths):.2f} x the "
                f"shortest, scaled {scaled} of {sum(map(len, parts))}",
                flush=True,
            )
            quarantined += len(outcome.quarantine)
            alarmed += bool(outcome.alarms)
            lowest, longest = min(lowest, *cosines), max(longest, *lengths)
    print(
        f"honest sites quarantined: {quarantined}; runs with an alarm: {alarmed} of {len(SPLITS) * len(SEEDS)}; lowest "
        f"cosine {lowest:.2f}; longest update {longest:.2f} x the shortest of its round"
    )
    return 0


def _lengths(line: dict[str, Any]) -> list[float]:
    return [site["length"] for site in line.values() if site["length"]]


if __name__ == "__main__":
    sys.exit(main())
