"""Kills starts of a simulation, as ``kill -9`` does, at each of their operations on the run folder.

``python -m tests.server.simulation.killed_starts FOLDER [STRIDE]`` begins runs on ``data`` in FOLDER, each in a child,
kills each before another operation, and begins it again in another child. Prints ``killed N times``. With a stride it
kills at every operation of that distance.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from common.config.federation import load_federation
from server.progress.events import Event, Notice, RunStarted
from server.run_store.folder import RunFolder
from server.simulation.experiment import SimulationOptions, simulate
from tests import tiny

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir"}


class BegunError(Exception):
    """Ends a run just after it has begun."""


def begin(place: Path, run: Path, *, resume: bool = False) -> list[str]:
    """Starts a run on the data of a folder, and ends it as soon as it has begun; what it said until then."""
    config, cache = load_federation(place / "federation.yaml"), Path(os.environ["FEDVOX_CACHE"])
    options = SimulationOptions(place / "data", run, device="cpu", cache=cache, resume=resume)
    told = []

    def listen(event: Event) -> None:
        if isinstance(event, RunStarted):
            raise BegunError
        if isinstance(event, Notice):
            told.append(event.text)

    try:
        simulate(config, options, listen)
    except BegunError:
        return told
    raise AssertionError("it did not begin")


def main(place: Path, stride: int) -> int:
    """Kills at every point; exit status 1 if the next start does not begin as it should."""
    if in_child(lambda: begin(place, place / "whole")) != 0:
        return 1
    kills = 0
    while was_killed(place, run := place / f"killed_{kills}", kills * stride):
        if problem := problem_of_next(place, run, seed=100 + kills):
            print(f"killed before operation {kills * stride}: {problem}")
            return 1
        kills += 1
    print(f"killed {kills} times")
    return 0


def was_killed(place: Path, run: Path, operation: int) -> bool:
    """Whether a run was killed before it did its operation of that number."""
    tiny.write_federation(place)
    return in_child(lambda: begin_and_be_killed(place, run, operation)) == -signal.SIGKILL


def problem_of_next(place: Path, run: Path, seed: int) -> str | None:
    """What is wrong with the next start: of another configuration, or resumed, if the killed one had begun."""
    begun = RunFolder(run).has_begun()
    if not begun:
        (place / "federation.yaml").write_text(tiny.FEDERATION.replace("seed: 1", f"seed: {seed}"))
    if in_child(lambda: begin(place, run, resume=begun)) != 0:
        return "the next start fails"
    found, wanted = (sorted(path.name for path in folder.iterdir()) for folder in (run, place / "whole"))
    if found != wanted:
        return f"{found}, not {wanted}"
    if not begun and f"seed: {seed}" not in (run / "federation.yaml").read_text():
        return "the configuration is that of the killed start"
    return None


def begin_and_be_killed(place: Path, run: Path, operation: int) -> None:
    """Begins a run, unless it has an operation of that number on files of the run folder."""
    left = operation

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in OPERATIONS and str(run) in str(arguments[0]):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)
    begin(place, run)


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a child that does some work; the negative number of the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
