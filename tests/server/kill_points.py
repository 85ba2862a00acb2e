"""Kills a run, as ``kill -9`` does, at each of its operations on files, and goes on with it each time.

Weights go through the gateway's folder, as over a network, so that updates outlive the server app; sites answer in the
server app's own process, and what they were doing dies with it.

The last model is an average, for which earlier ones must be kept.

``python -m tests.server.kill_points FOLDER ENCODING every|each-kind`` forks a child for an operation, in which an audit
hook sends SIGKILL just before that operation is done; then it goes on with what is left, and compares the end with that
of a run that was never killed. Prints ``killed N times``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from server.rounds.round_loop import Link
from server.rounds.weight_transfer import GatewayTransfer
from server.run_store.folder import RunFolder
from server.run_store.gateway_folder import GatewayFolder
from server.simulation.inline_grid import InlineGrid
from tests import tiny
from tests.kill_schedule import Act, chosen, kill_before, on_operations, write_kinds
from tests.server.fake_sites import LAYOUT, begin, broken, gateway_app, honest, nodes, run_over, site

CONFIG = tiny.federation(
    rounds=2, strategy={"average_rounds": 2}, transport={"upload": "bfloat16", "download": sys.argv[2]}
)
SITES = [
    ("a", 30, honest("a", 30, 1.0, lambda weights: 1 - abs(float(weights[0]) - 2) / 10)),
    site("b", 20, 1.2),
    ("bad", 10, broken("nan")),
]


def main(root: Path, places: str) -> int:
    """Kills at every place, or at one of each kind; exit status 1 if an end differs."""
    whole, kinds = RunFolder.create(root / "whole"), root / "kinds"
    assert not is_killed(whole, write_kinds(kinds))
    kills = 0
    for operation in chosen(kinds, places):
        folder = RunFolder.create(root / f"killed_{operation}")
        kills += is_killed(folder, kill_before(operation))
        go(folder)
        if end(folder) != end(whole) or leftovers(folder) != leftovers(whole):
            print(f"killed before operation {operation}: {end(folder)} {leftovers(folder)}")
            print(f"not {end(whole)} {leftovers(whole)}")
            return 1
    print(f"killed {kills} times")
    return 0


def go(folder: RunFolder) -> None:
    """Runs to the end."""
    begin(CONFIG, LAYOUT, folder)
    gateway = GatewayFolder(folder.path)
    gateway.make()
    grid = InlineGrid(gateway_app(gateway, SITES), nodes(len(SITES)))
    link = Link(GatewayTransfer(gateway, CONFIG.transport.download), grid.message)
    run_over(grid, link, CONFIG, LAYOUT, len(SITES), folder)


def is_killed(folder: RunFolder, act: Act) -> bool:
    """Whether a child that runs to the end was killed by what it does before each operation."""
    child = os.fork()
    if child == 0:
        on_operations(folder.path, act)
        go(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def end(folder: RunFolder) -> object:
    """What must be the same: state, lines and weights, but for times and what had to be sent twice."""
    state = folder.load_state()
    assert state is not None
    times = {"seconds": 0, "started": "", "bytes_down": 0, "rounds_bytes": 0, "round_state": ""}
    state.digests.pop("rounds.jsonl")
    lines = [{**line, **times} for line in folder.read_rounds()]
    weights = folder.load_checkpoint(2, LAYOUT)
    assert np.isfinite(weights).all()
    return {**state.model_dump(), **times}, lines, weights.tobytes()


def leftovers(folder: RunFolder) -> list[str]:
    """Names of all files, but for half-written and spare ones of the gateway, whose folder goes at the end."""
    named = (path for path in folder.path.rglob("*") if not ("gateway" in path.parts and path.name.startswith(".")))
    return sorted(str(path.relative_to(folder.path)) for path in named)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[3]))
