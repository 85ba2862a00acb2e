"""``fedvox-client start`` or ``runner`` of a site that can be held in the middle of its training, or that lies.

Everything is the real site's, but for two things in its runner. While the file ``hold`` in the state folder names a
round, or none at all, training waits after its first step and says so in ``held``. And the file ``lies`` names, line
by line, what becomes of the reply of round 1, 2, ...: one of ``LIES``, or anything else for the truth.
"""

from __future__ import annotations

import sys

from client.runner.isolation import isolate

RUNNER = "scripted-runner"
"""In the place of a command: the program of the runner process."""
# Before anything starts a thread, as the real program does it.
ISOLATION = isolate() if __name__ == "__main__" and sys.argv[1] == RUNNER else None

# ruff: noqa: E402
import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from client.cli import entry
from client.consent.guard import TaskGuard
from client.runner import main as runner
from client.runner.app_call import App
from client.runner.client_app import Continuity, Site, SiteWeights, make_client_app
from client.runner.progress import TaskProgress
from client.site import start
from client.site.split_start import run_runner_preflight
from client.site.supervision import Upkeep, require_preflight
from client.state_folder import StateFolder, default_ledger
from common.protocol.codec import from_record, pack, to_record, unpack_answer
from common.protocol.messages import Result
from common.system.supervisor import Child
from common.weights.store import WeightStore

REPLAY = "replay"
POLL_SECONDS = 0.02


def main() -> int:
    if sys.argv[1] not in ("start", "runner"):
        return entry.main()
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["start", "runner"])
    for name in ("--kit", "--data", "--cache"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--state", "--shared", "--ledger"):
        parser.add_argument(name, type=Path)
    given, _ = parser.parse_known_args()
    folder = StateFolder((given.state or given.kit / "state").absolute())
    options = start.SiteOptions(
        given.kit.absolute(),
        given.data.absolute(),
        folder.path,
        given.shared or folder.shared,
        given.cache.absolute(),
        "cpu",
        given.ledger or default_ledger(),
    )
    child = scripted(start.runner_process(options, folder))
    with folder.locked():
        if given.command == "runner":
            require_preflight(run_runner_preflight(options), print)
            Upkeep(folder, [child], "runner", "ready for tasks", print).run()
        else:
            require_preflight(start.run_preflight(options), print)
            children = [start.courier_process(options.kit, folder, options.shared), child]
            Upkeep(folder, children, "site", "ready for tasks", print).run()
    return 0


def scripted(child: Child) -> Child:
    """The same process, with this module in the place of the runner's program."""
    place = child.command.index("client.runner")
    command = [*child.command[:place], "tests.e2e.scripted_site", RUNNER, *child.command[place + 1 :]]
    return replace(child, command=command)


def run_runner(arguments: Sequence[str]) -> int:
    state = Path(arguments[arguments.index("--state") + 1])

    class HeldProgress(TaskProgress):
        def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
            super().site_step(round, site, step, steps, loss)
            while step == 1 and is_held(state, round):
                (state / "held").write_text(str(round))
                time.sleep(POLL_SECONDS)
                super().site_step(round, site, step, steps, loss)

    def lying_app(
        open_site: Callable[[Context], Site], weights: SiteWeights, guard: TaskGuard, continuity: Continuity
    ) -> App:
        app: App = make_client_app(open_site, weights, guard, continuity)
        if not (state / "lies").exists():
            return app
        return liar(app, weights.outbox, (state / "lies").read_text().splitlines())

    runner.TaskProgress = HeldProgress  # type: ignore[attr-defined]
    runner.make_client_app = lying_app  # type: ignore[assignment,attr-defined]
    assert ISOLATION is not None
    return runner.main(ISOLATION, list(arguments))


def is_held(state: Path, round_number: int) -> bool:
    try:
        rounds = (state / "hold").read_text().split()
    except FileNotFoundError:
        return False
    return not rounds or str(round_number) in rounds


def liar(app: App, outbox: WeightStore, lies: Sequence[str]) -> App:
    kept: list[tuple[Result, NDArray[np.uint8]]] = []

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        told = unpack_answer(from_record(reply.content)) if reply.has_content() else None
        if not isinstance(told, Result) or told.update is None:
            return reply
        kept.append((told, np.array(outbox.get(told.update))))
        lie = lies[len(kept) - 1] if len(kept) <= len(lies) else ""
        if lie == REPLAY:
            told, content = kept[0]
            outbox.put([content])
        else:
            told = LIES.get(lie, the_truth)(told, outbox)
        return Message(to_record(pack(told)), reply_to=message)

    return answer


Lie = Callable[[Result, WeightStore], Result]


def with_update(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Lie:
    """A lie about the update."""

    def lie(told: Result, outbox: WeightStore) -> Result:
        assert told.update is not None
        values = change(np.array(outbox.get(told.update)).view("<f4"))
        return replace(told, update=outbox.put([values]))

    return lie


def not_a_number(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values[len(values) // 2] = np.nan
    return values


def the_truth(told: Result, outbox: WeightStore) -> Result:
    return told


def with_more_patients(told: Result, outbox: WeightStore) -> Result:
    return replace(told, examples=1000)


LIES: dict[str, Lie] = {
    "nan": with_update(not_a_number),
    "shape": with_update(lambda values: values[:-1]),
    "norm": with_update(lambda values: 1000 * values),
    "patients": with_more_patients,
}

if __name__ == "__main__":
    sys.exit(run_runner(sys.argv[2:]) if ISOLATION is not None else main())
