"""Ends a comparison with SIGTERM at one moment after another, and continues it until it is finished.

``python -m tests.server.comparison.interrupted_comparisons FOLDER`` does so with the finished one in FOLDER, from its
beginning, by the command in a process of its own each time. Prints ``ended N times``, or what is wrong.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from server.cli.entry import main as fedvox_server
from server.comparison.compare import SCORES_TABLE

MOMENTS = (
    "local at phantom-site-a, seed 1 (1 of 3)",
    "tiny: 1 round, 1 site",
    "scoring local at phantom-site-b",
    "final evaluation: phantom-site-b",
)
"""What it says when it is ended: before a run, in its training, between two runs, and with one site's reply left."""


def main(place: Path) -> int:
    """Exit status 1 if an end is not as it should be, or the scores are others."""
    whole = (place / "out" / SCORES_TABLE).read_bytes()
    shutil.rmtree(place / "out")
    for number, moment in enumerate(MOMENTS):
        status, said = ended(place, moment)
        if status != 130 or "interrupted; finished work is kept" not in said:
            print(f"after {number} ends, at {moment!r}: exit status {status}; it said {said}")
            return 1
    status, said = ended(place, None)
    if status != 0:
        print(f"it does not go on: exit status {status}; it said {said}")
        return 1
    if (place / "out" / SCORES_TABLE).read_bytes() != whole:
        print("the scores are others")
        return 1
    print(f"ended {len(MOMENTS)} times")
    return 0


def ended(place: Path, moment: str | None) -> tuple[int, str]:
    """Starts the command and sends SIGTERM once it says so; its exit status, and all that it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        os._exit(work(place))
    os.close(writing)
    said = []
    with os.fdopen(reading, encoding="utf-8") as lines:
        for line in lines:
            said.append(line)
            if moment is not None and line.startswith(moment):
                os.kill(child, signal.SIGTERM)
                moment = None
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "".join(said)


def work(place: Path) -> int:
    """Compares each site alone with one algorithm."""
    folders = ["--data", place / "data", "--out", place / "out", "--cache", place / "cache"]
    options = ["--arms", "local,fedavg", "--seeds", "1", "--device", "cpu"]
    return fedvox_server(["compare", *map(str, [place / "federation.yaml", *folders]), *options])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
