"""The hippocampus federation with int8 uploads against the same with float32: bytes, and what it costs in Dice.

``python -m tests.benchmarks.int8_upload [DATASET]``; last line: bytes up as a share of float32's, and the difference of
the best mean validation Dice (int8 less float32).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks._hippocampus import PLAIN
from tests.conftest import REPOSITORY


def run(upload: str, dataset: Path, folder: Path) -> tuple[float, float]:
    """Best mean Dice, and bytes up per site and round, of a federation that is simulated here."""
    federation = REPOSITORY / "deploy" / "examples" / "hippocampus.yaml"
    command = [sys.executable, "-m", "server.cli", "simulate", federation, "--data", dataset, "--out", folder / upload]
    changes = (*PLAIN, "simulation.pooled=false", f"transport.upload={upload}")
    command += ["--cache", folder / "cache", *(f"--set={change}" for change in changes)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    summary = json.loads((folder / upload / "summary.json").read_text())
    rounds = [json.loads(line) for line in (folder / upload / "rounds.jsonl").read_text().splitlines()]
    updates = sum(len(line["sites"]) for line in rounds if line["phase"] == "train")
    return summary["best_mean_dice"], summary["bytes_up"] / updates


def main(arguments: Sequence[str]) -> None:
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    dataset = Path(arguments[0]) if arguments else data / "Task04_Hippocampus"
    with tempfile.TemporaryDirectory() as folder:
        found = {upload: run(upload, dataset, Path(folder)) for upload in ("float32", "int8")}
    for upload, (dice, size) in found.items():
        print(f"{upload:<8} mean Dice {dice:.4f}, {size / 1e6:7.3f} MB up per site and round", flush=True)
    share = found["int8"][1] / found["float32"][1]
    print(f"int8_upload: {share:.3f} {found['int8'][0] - found['float32'][0]:+.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
