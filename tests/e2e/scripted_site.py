"""``fedvox-client`` of a site that can be held in the middle of its training, or that lies to the server.

Everything is the real site's, but for two things in its runner. While the file ``hold`` in the state folder names a
round, or none at all, training waits after its first step and says so in ``held``. And the file ``lies`` names, line
by line, what becomes of the reply of round 1, 2, ...: one of ``LIES``, or anything else for the truth.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from numpy.typing import NDArray

from client import cli, parts, site_runner, start
from client.heartbeat import CancelledError, StepCounter
from client.runner import App
from common.supervise import Child

REPLAY = "replay"
RUNNER = "scripted-runner"
"""In the place of a command: the program of the runner process."""
POLL_SECONDS = 0.02


def main() -> int:
    if sys.argv[1] == RUNNER:
        run_runner(sys.argv[2:])
        return 0
    honest = start.runner_process

    def with_this_program(*arguments: Any) -> Child:
        child = honest(*arguments)
        place = child.command.index("client.site_runner")
        command = [*child.command[:place], "tests.e2e.scripted_site", RUNNER, *child.command[place + 1 :]]
        return Child(child.name, command, child.env, child.log, child.ready)

    for module in (start, parts):
        module.runner_process = with_this_program  # type: ignore[attr-defined]
    return cli.main()


def run_runner(arguments: Sequence[str]) -> None:
    state = Path(arguments[arguments.index("--state") + 1])

    class HeldCounter(StepCounter):
        def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
            super().site_step(round, site, step, steps, loss)
            while step == 1 and is_held(state, round):
                if self.cancelled:
                    raise CancelledError("the work was cancelled")
                (state / "held").write_text(str(round))
                time.sleep(POLL_SECONDS)

    honest = site_runner.make_client_app

    def lying_app(*options: Any) -> App:
        app: App = honest(*options)
        return liar(app, (state / "lies").read_text().splitlines()) if (state / "lies").exists() else app

    site_runner.StepCounter = HeldCounter  # type: ignore[misc, attr-defined]
    site_runner.make_client_app = lying_app  # type: ignore[assignment, attr-defined]
    site_runner.main(list(arguments))


def is_held(state: Path, round_number: int) -> bool:
    try:
        rounds = (state / "hold").read_text().split()
    except FileNotFoundError:
        return False
    return not rounds or str(round_number) in rounds


def liar(app: App, lies: Sequence[str]) -> App:
    kept: list[RecordDict] = []

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != MessageType.TRAIN or reply.has_error():
            return reply
        kept.append(reply.content)
        lie = lies[len(kept) - 1] if len(kept) <= len(lies) else ""
        content = kept[0] if lie == REPLAY else LIES.get(lie, lambda content: content)(reply.content)
        return Message(content, reply_to=message)

    return answer


def with_update(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[RecordDict], RecordDict]:
    """A lie about the first piece of the update."""

    def lie(content: RecordDict) -> RecordDict:
        pieces = dict(content.array_records["update"])
        name, piece = next(iter(pieces.items()))
        values = change(np.frombuffer(piece.data, dtype="<f4").copy())
        pieces[name] = Array(piece.dtype, values.shape, piece.stype, values.tobytes())
        return RecordDict({**content, "update": ArrayRecord(pieces)})

    return lie


def not_a_number(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values[len(values) // 2] = np.nan
    return values


def with_more_patients(content: RecordDict) -> RecordDict:
    changed = RecordDict(dict(content))
    changed.metric_records["numbers"]["examples"] = 1000
    return changed


LIES: dict[str, Callable[[RecordDict], RecordDict]] = {
    "nan": with_update(not_a_number),
    "shape": with_update(lambda values: values[:-1]),
    "norm": with_update(lambda values: 1000 * values),
    "patients": with_more_patients,
}

if __name__ == "__main__":
    sys.exit(main())
