"""A runner whose client app does what the message says; and which dies at a chosen point, once.

Arguments: runtime address, state folder, point at which to die (or ``never``; at ``full`` its disk is, instead).
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict

from client import runtime
from client.runner import Runner
from client.task_file import OpenTask, Stage, TaskFile


def die_once(state: Path) -> None:
    flag = state / "died"
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def die_before(owner: Any, name: str, state: Path) -> None:
    """Lets the first call of a method be the end of this process."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any) -> Any:
        die_once(state)
        return original(*arguments)

    setattr(owner, name, wrapped)


def fill_disk_once(state: Path) -> None:
    """Lets the note of one task that has begun fail."""
    save = TaskFile.save

    def wrapped(file: TaskFile, task: OpenTask) -> None:
        if task.stage is Stage.STARTED and not (state / "full").exists():
            (state / "full").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, task)

    TaskFile.save = wrapped  # type: ignore[method-assign]


def app(message: Message, context: Context) -> Message:
    words = str(message.content.config_records["do"]["what"]).split()
    state = Path(sys.argv[2])
    if words[0] == "echo":
        return Message(RecordDict(dict(message.content)), reply_to=message)
    if words[0] == "fail":
        return Message(Error(code=1000, reason="ValueError"), reply_to=message)
    if words[0] == "raise":
        raise ValueError("patient Meier's scan is in /data/meier.nii.gz")
    if words[0] == "die":
        die_once(state)
        return Message(RecordDict(dict(message.content)), reply_to=message)
    (state / "working").touch()
    try:
        time.sleep(float(words[1]))
    except BaseException as error:
        (state / "broken-off").write_text(type(error).__name__)
        raise
    return Message(RecordDict(dict(message.content)), reply_to=message)


def main() -> None:
    address, state, point = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if point == "claimed":
        die_before(runtime.ClaimedTask, "start", state)
    elif point == "started":
        die_before(runtime.ClaimedTask, "header", state)
    elif point == "replying":
        die_before(runtime.RuntimeHttpClient, "PushObject", state)
    elif point == "full":
        fill_disk_once(state)
    Runner(
        address,
        (state / "secret").read_bytes(),
        TaskFile(state / "runner-task.json"),
        app,
        report=lambda state_name: (state / "report").write_text(state_name) and None,
    ).serve()


if __name__ == "__main__":
    main()
