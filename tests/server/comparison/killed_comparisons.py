"""Kills a comparison again and again, as ``kill -9`` does, and continues it until it is finished.

``python -m tests.server.comparison.killed_comparisons FOLDER STRIDE`` compares what ``federation.yaml`` in FOLDER says,
first without a kill, then with one after STRIDE operations on files, 2 x STRIDE, and so on. Prints ``killed N times``.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from common.config.federation import load_federation
from server.comparison.arms import parse_arms
from server.comparison.compare import SCORES_TABLE, compare
from server.simulation.experiment import SimulationOptions
from tests.server.simulation.killed_starts import OPERATIONS, in_child


def main(place: Path, stride: int) -> int:
    """Exit status 1 if the scores of the killed comparison are not those of the whole one."""
    if in_child(lambda: work(place, place / "whole")) != 0:
        return 1
    kills = 0
    while (ended := in_child(partial(work_and_be_killed, place, place / "killed", (kills + 1) * stride))) != 0:
        if ended != -signal.SIGKILL:
            print(f"after {kills} kills, the comparison does not go on")
            return 1
        kills += 1
    one, other = ((place / name / SCORES_TABLE).read_bytes() for name in ("whole", "killed"))
    if one != other:
        print(f"after {kills} kills, the scores are others")
        return 1
    print(f"killed {kills} times")
    return 0


def work(place: Path, out: Path) -> None:
    """Compares one baseline with one algorithm."""
    config, cache = load_federation(place / "federation.yaml"), place / "cache"
    options = SimulationOptions(None, out, device="cpu", cache=cache)
    _, complete = compare(config, parse_arms("pooled_short,fedavg"), (1,), options, lambda event: None)
    assert complete


def work_and_be_killed(place: Path, out: Path, operations: int) -> None:
    """Compares until it has done so many operations on files of the folder."""
    left = operations

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in OPERATIONS and str(out) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(place, out)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
