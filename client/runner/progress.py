"""How far the runner is: for the courier, which tells the server, and for whoever asks at the hospital."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.shared_folder import SharedFolder, Work
from client.state_folder import write_json
from common.errors import FedvoxError, OutputError
from common.protocol.messages import ErrorCode

if TYPE_CHECKING:
    from client.runner.client_app import Observer

log = logging.getLogger("fedvox.runner")

WRITE_SECONDS = 0.5
SIGN_SECONDS = 10.0
LONGEST_SILENCE_SECONDS = 180.0
"""A case is prepared in less than that."""


class SupersededError(FedvoxError):
    """The server has sent a newer task, and does not want this one any more."""

    code = ErrorCode.TASK_LOST


class RunnerStatus:
    """Writes what the runner does to a file, seldom enough to cost nothing. An ``Observer`` of the site.

    A full disk does not disturb the work: then the file is old, which ``fedvox-client health`` tells.

    Parameters
    ----------
    path
        the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = {"pid": os.getpid(), "state": "starting"}
        self._written = 0.0
        self._lock = threading.Lock()

    def say(self, **content: Any) -> None:
        """Changes entries; a change of state or of a problem is written at once, anything else now and then.

        Also what is unchanged is written every 10 s, with the time by which the next sign of life will have come.
        """
        with self._lock:
            before = dict(self._content)
            self._content |= content
            urgent = any(before.get(name) != self._content.get(name) for name in ("state", "problem"))
            silent = time.monotonic() - self._written
            if urgent or silent >= SIGN_SECONDS or (silent >= WRITE_SECONDS and self._content != before):
                self._written = time.monotonic()
                now = time.time()
                try:
                    write_json(self._path, self._content | {"time": now, "sign_by": now + LONGEST_SILENCE_SECONDS})
                except OutputError as error:
                    log.error("%s", error)

    def state(self, name: str) -> None:
        """What the runner reports of itself: ``preparing data``, ``waiting`` or ``working``."""
        self.say(state=name)

    def prepared(self, done: int, cases: int) -> None:
        """How far the data are."""
        self.say(prepared=done, cases=cases)

    def site_started(self, round: int, site: str, steps: int) -> None:
        """A round begins."""
        del site
        self.say(round=round, step=0, steps=steps)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A step is done."""
        del site, loss
        self.say(round=round, step=step, steps=steps)


class TaskProgress:
    """Counts the steps of the task under way; to be given to the site as its observer.

    Parameters
    ----------
    folder
        where the courier reads how far it is.
    following
        another observer, which sees everything too.
    """

    def __init__(self, folder: SharedFolder, following: Observer | None = None) -> None:
        self._folder = folder
        self._following = following
        self._work = Work()
        self._written = 0.0
        self._superseded = False

    def begin(self, task: str) -> None:
        """Work on a task begins."""
        self._superseded = False
        self._write(Work(task))

    def end(self) -> None:
        """It has ended, or none was ever begun."""
        self._write(Work())

    def cancel(self) -> None:
        """Ends the work at its next step."""
        self._superseded = True

    def site_started(self, round: int, site: str, steps: int) -> None:
        """The number of steps is known."""
        self._write(Work(self._work.task, 0, steps))
        if self._following is not None:
            self._following.site_started(round, site, steps)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A step is done.

        Raises
        ------
        SupersededError
            the work was cancelled.
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
            log.error("%s", error)  # the work itself goes on: there may be room when it is done
