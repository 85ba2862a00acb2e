"""Time and memory of robust aggregation against the mean: 16 updates of 30 million weights.

``python -m tests.benchmarks.robust_aggregation`` writes the updates to files, as a round stores them, and runs every
algorithm in a process of its own, in turns. Memory is the highest anonymous memory above that of a process which has
read nothing yet; pages of the updates' files are the kernel's cache, and next models are written as they come.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.protocol.messages import Result
from common.weights.store import map_file
from server.rounds.aggregation import StoredUpdates
from server.rounds.strategies.registry import STRATEGIES
from server.rounds.strategies.strategy import StrategyState

SITES, SIZE, TURNS = 16, 30_000_000, 3
CANDIDATES = ("fedavg", "median", "trimmed_mean", "multi_krum", "geometric_median", "clipped_mean")
OPTIONS: dict[str, dict[str, float]] = {
    "trimmed_mean": {"malicious_sites": 3},
    "multi_krum": {"malicious_sites": 3},
    "clipped_mean": {"clip_factor": 1.0},
}
RESULT = Result("", "r1", 1, 10, 2, 1, 0.5, 0.5, {1: 0.5}, 0.0, 0.0, 0.0, 0.0)


def anonymous_bytes() -> int:
    """Anonymous memory of this process now."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def aggregate(name: str, folder: Path) -> None:
    """Runs one algorithm, and prints seconds and bytes."""
    contents = {path.stem: map_file(path) for path in sorted(folder.glob("*.update"))}
    weights = map_file(folder / "weights").view(np.float32)
    results = {site: replace(RESULT, site=site) for site in contents}
    updates = StoredUpdates(results, dict.fromkeys(contents, 1.0), contents, SIZE, "float32")
    strategy = STRATEGIES[name](**OPTIONS.get(name, {}))
    over, before, highest = threading.Event(), anonymous_bytes(), 0

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.01):
            highest = max(highest, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    with (folder / "next").open("wb") as file:
        for step in strategy.aggregate(updates, weights, StrategyState()):
            file.write(step.weights.data)
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    print(seconds, highest - before)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, random = Path(name), np.random.default_rng(0)
        random.standard_normal(SIZE, np.float32).tofile(folder / "weights")
        for site in range(SITES):
            random.standard_normal(SIZE, np.float32).tofile(folder / f"s{site:02}.update")
        best: dict[str, tuple[float, int]] = {}
        for _ in range(TURNS):
            for candidate in CANDIDATES:
                command = [sys.executable, "-m", "tests.benchmarks.robust_aggregation", candidate, str(folder)]
                found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                before = best.get(candidate, (float("inf"), 0))
                best[candidate] = (min(before[0], float(found[0])), max(before[1], int(found[1])))
    print(f"{SITES} updates of {SIZE:,} weights")
    for candidate, (seconds, peak) in best.items():
        print(
            f"{candidate:<17} {seconds:6.2f} s, {seconds / best['fedavg'][0]:4.2f} x the mean; "
            f"{peak / 2**20:5.0f} MiB, {peak / (4 * SIZE):4.2f} x the model"
        )
    slowest = max(best[name][0] for name in ("median", "trimmed_mean")) / best["fedavg"][0]
    largest = max(best[name][1] for name in ("median", "trimmed_mean")) / (4 * SIZE)
    print(f"median and trimmed mean: {slowest:.2f} x the time of the mean, {largest:.2f} x the model in memory")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        aggregate(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
