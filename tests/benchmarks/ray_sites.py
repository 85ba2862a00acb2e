"""What 8 and 64 simulated sites cost on Ray: memory of all processes together, and seconds per round and site.

``python -m tests.benchmarks.ray_sites [--sites 8 64] [--rounds 3]`` makes phantoms, four per site, and runs
``fedvox-server simulate --engine ray`` on them, with as many workers as there are processor cores. Memory is anonymous
memory and shared memory of the command and of every process below it (Ray's own and its workers), summed, every 0.2 s;
mapped files (preprocessed scans, weights) do not count.

Last line: ``ray_sites: RATIO SECONDS``, the largest memory with the most sites against that with the fewest, and the
median time of a round with the most sites, per site.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FEDERATION = """
name: many-sites
rounds: {rounds}
model: {{channels: [16, 32, 64], groups: 8}}
training: {{local_steps: 4}}
simulation:
  engine: ray
  phantom: {{cases_per_site: [{cases}], shape: [32, 32, 32]}}
  partition: {{method: column, file: sites.csv, column: site, validation_fraction: 0.25}}
"""


def processes_below(parent: int) -> list[int]:
    """A process and all of its descendants."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, queue = [], [parent]
    while queue:
        each = queue.pop()
        found.append(each)
        queue += parents.get(each, [])
    return found


def memory_of(process: int) -> int:
    """Kilobytes that are not mapped files; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def measure(folder: Path, sites: int, rounds: int) -> tuple[int, float]:
    """Runs a simulation; the most megabytes of all its processes, and the median seconds of a round."""
    file = folder / f"{sites}.yaml"
    file.write_text(FEDERATION.format(rounds=rounds, cases=", ".join(["4"] * sites)), encoding="utf-8")
    run = folder / f"run-{sites}"
    command = [sys.executable, "-m", "server.cli", "simulate", file, "--out", run, "--cache", folder / "cache"]
    most = 0
    with (folder / f"{sites}.log").open("w") as log:
        running = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
        while running.poll() is None:
            most = max(most, sum(memory_of(process) for process in processes_below(running.pid)))
            time.sleep(0.2)
    if running.returncode:
        raise SystemExit((folder / f"{sites}.log").read_text())
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return most // 1024, statistics.median(line["seconds"] for line in lines if line["phase"] == "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs=2, default=(8, 64), metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for sites in options.sites:
            megabytes, seconds = measure(Path(folder), sites, options.rounds)
            figures.append((megabytes, seconds / sites))
            print(f"{sites:3} sites: at most {megabytes} MB, {seconds:.1f} s a round, {seconds / sites:.2f} s per site")
    (few, _), (many, per_site) = figures
    print(f"ray_sites: {many / few:.2f} {per_site:.2f}")


if __name__ == "__main__":
    main()
