"""The runner's progress, for the courier, which tells the server, and for people at the hospital."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.shared_folder import SharedFolder, Work
from client.state_folder import write_json
from common.errors import FedvoxError, OutputError
from common.protocol.messages import ErrorCode
from common.system.devices import gpu_memory

if TYPE_CHECKING:
    from client.runner.client_app import Observer

log = logging.getLogger("fedvox.runner")

WRITE_SECONDS = 0.5
SIGN_SECONDS = 10.0
LONGEST_SILENCE_SECONDS = 180.0
"""Preparing one case takes less than this."""


class SupersededError(FedvoxError):
    """The server has sent a newer task and no longer waits for this one."""

    code = ErrorCode.TASK_LOST


class RunnerStatus:
    """Writes the runner's status to a file, rarely enough to cost nothing. An ``Observer`` of the site.

    A full disk does not interrupt the work: the file becomes stale, which ``fedvox-client health`` reports.

    Parameters
    ----------
    path
        The status file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = {"pid": os.getpid(), "state": "starting"}
        self._steps_done, self._training_seconds = 0, 0.0
        self._step_began = time.monotonic()
        self._written = 0.0
        self._lock = threading.Lock()

    def say(self, **content: Any) -> None:
        """Update entries; write a changed state, problem or notice at once, anything else at most every 0.5 s.

        Calls write the file after 10 s even without a change, with the time by which the next write is due.
        """
        with self._lock:
            before = dict(self._content)
            self._content |= content
            urgent = any(before.get(name) != self._content.get(name) for name in ("state", "problem", "notice"))
            silent = time.monotonic() - self._written
            if urgent or silent >= SIGN_SECONDS or (silent >= WRITE_SECONDS and self._content != before):
                self._written = time.monotonic()
                now = time.time()
                try:
                    write_json(self._path, self._content | {"time": now, "sign_by": now + LONGEST_SILENCE_SECONDS})
                except OutputError as error:
                    log.error("%s", error)

    def state(self, name: str) -> None:
        """Set the runner's state: ``preparing data``, ``waiting`` or ``working``."""
        self.say(state=name)

    def prepared(self, done: int, cases: int) -> None:
        """Report how many cases are prepared."""
        self.say(prepared=done, cases=cases)

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Report the start of a round."""
        del site
        self._step_began = time.monotonic()
        self.say(round=round, step=0, steps=steps, loss=None)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Report a finished step; the loss is for people at the hospital, and no heartbeat has it."""
        del site
        known = loss if loss is not None and math.isfinite(loss) else None
        now = time.monotonic()
        self._steps_done += 1
        self._training_seconds += now - self._step_began
        self._step_began = now
        memory = gpu_memory()
        done: dict[str, Any] = {"steps_done": self._steps_done, "training_seconds": self._training_seconds}
        done |= {} if memory is None else {"gpu_memory": memory}
        self.say(round=round, step=step, steps=steps, loss=known, **done)


class TaskProgress:
    """Counts the steps of the current task, as the site's observer.

    Parameters
    ----------
    folder
        Shared folder, where the courier reads the progress.
    following
        Another observer that receives every call.
    """

    def __init__(self, folder: SharedFolder, following: Observer | None = None) -> None:
        self._folder = folder
        self._following = following
        self._work = Work()
        self._written = 0.0
        self._superseded = False

    def begin(self, task: str) -> None:
        """Start counting for a task."""
        self._superseded = False
        self._write(Work(task))

    def end(self) -> None:
        """Record that no task is being worked on."""
        self._write(Work())

    def cancel(self) -> None:
        """Stop the work at its next step."""
        self._superseded = True

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Record the number of steps."""
        self._write(Work(self._work.task, 0, steps))
        if self._following is not None:
            self._following.site_started(round, site, steps)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Record a finished step.

        Raises
        ------
        SupersededError
            The work was cancelled.
        """
        if self._superseded:
            raise SupersededError("a newer task has come")
        self._work = Work(self._work.task, step, steps)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write(self._work)
        if self._following is not None:
            self._following.site_step(round, site, step, steps, loss)

    def _write(self, work: Work) -> None:
        self._work, self._written = work, time.monotonic()
        try:
            self._folder.set_work(work)
        except OutputError as error:
            log.error("%s", error)  # the work goes on: there may be space again when it is done
