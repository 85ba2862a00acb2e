"""The example federation on the real hippocampus scans, and the same code with all data in one place.

``python -m tests.benchmarks.hippocampus [DATASET]``; last line: best mean validation Dice of the federation, its
seconds, and the Dice of pooled training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import REPOSITORY


def main(arguments: Sequence[str]) -> None:
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    dataset = Path(arguments[0]) if arguments else data / "Task04_Hippocampus"
    federation = REPOSITORY / "deploy" / "examples" / "hippocampus.yaml"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "server.cli", "simulate", federation, "--data", dataset, "--out", run]
        started = time.perf_counter()
        subprocess.run([*map(str, command), "--cache", f"{folder}/cache"], check=True, capture_output=True)
        whole = time.perf_counter() - started
        summary = json.loads((run / "summary.json").read_text())
    pooled = summary["pooled"]
    print(f"{'federation of three sites':<28} mean Dice {summary['best_mean_dice']:.4f} {summary['seconds']:7.0f} s")
    for label, name in summary["labels"].items():
        print(f"  {name:<26} mean Dice {summary['best_dice'][label]:.4f}")
    print(f"{'all data in one place':<28} mean Dice {pooled['mean_dice']:.4f} {pooled['seconds']:7.0f} s")
    print(f"everything, from files to report, {whole:.0f} s")
    print(f"hippocampus: {summary['best_mean_dice']:.4f} {summary['seconds']:.0f} {pooled['mean_dice']:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
