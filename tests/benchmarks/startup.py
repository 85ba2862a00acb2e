"""How long the command lines take to answer ``--help``: ``python -m tests.benchmarks.startup``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 7


def seconds_of_help(program: str) -> float:
    """Median over fresh processes."""
    values = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"{program}.cli", "--help"], check=True, capture_output=True)
        values.append(time.perf_counter() - started)
    return statistics.median(values)


def main() -> None:
    seconds = {program: seconds_of_help(program) for program in ("server", "client")}
    for program, value in seconds.items():
        print(f"fedvox-{program} --help {value:6.3f} s")
    print(f"startup: {max(seconds.values()):.3f}")


if __name__ == "__main__":
    main()
