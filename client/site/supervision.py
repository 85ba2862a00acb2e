"""Keeps one or both processes of a site running, and writes their state to the state folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from client.site.preflight_item import Item
from client.state_folder import Role, StateFolder, site_status, write_json
from common.errors import FedvoxError, OutputError
from common.system.files import cannot_write
from common.system.supervisor import Child, Supervisor

POLL_SECONDS = 0.1
STATUS_SECONDS = 2.0
STOP_SECONDS = 10.0

MessageSink = Callable[[str], None]


class PreflightError(FedvoxError):
    """Preflight found an error; the site cannot start."""


def require_preflight(items: Iterable[Item], say: MessageSink) -> None:
    """Show what preflight finds.

    Raises
    ------
    PreflightError
        If an item is an error.
    """
    wrong = []
    for item in items:
        say(str(item))
        if item.severity == "error":
            wrong.append(item.name)
    if wrong:
        raise PreflightError(f"not started; fix first: {', '.join(wrong)}")


class Upkeep:
    """Supervises the processes of one site.

    Parameters
    ----------
    folder
        State folder, locked by this process.
    children
        Processes to keep running.
    role
        Which part of a site they are.
    ready_line
        Line to show when they are ready.
    say
        Shows a line.
    """

    def __init__(
        self, folder: StateFolder, children: Sequence[Child], role: Role, ready_line: str, say: MessageSink
    ) -> None:
        self._folder = folder
        self._role = role
        self._ready_line = ready_line
        self._say = say
        self._since = time.time()
        self._written = 0.0
        self._was_ready = False
        self._write_error = ""
        self._supervisor = Supervisor(children, self._on_event)

    def run(self) -> None:
        """Keep all processes running until told to stop."""
        for leftover in (self._folder.contact, self._folder.runner):
            leftover.unlink(missing_ok=True)
        try:
            self._supervisor.start()
            while True:
                self._supervisor.poll()
                self._write_status()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self._say("stopping")
        finally:
            self._supervisor.stop(STOP_SECONDS)
            self._write_status(now=True)

    def _on_event(self, name: str, event: str) -> None:
        if name == "courier" and event.startswith("started"):
            self._folder.contact.unlink(missing_ok=True)
        file = self._folder.logs / "start.log"
        try:
            with file.open("a", encoding="utf-8") as log:
                log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {name}: {event}\n")
        except OSError as error:
            self._show_write_error(cannot_write(file, error))
        if "again in" in event:
            self._say(f"{name} {event} (see {self._folder.logs / (name + '.log')})")
        self._written = 0.0

    def _write_status(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._written < STATUS_SECONDS and self._was_ready:
            return
        self._written = time.monotonic()
        content = {
            "pid": os.getpid(),
            "since": self._since,
            "role": self._role,
            "processes": self._supervisor.states(),
        }
        try:
            write_json(self._folder.status, content)
            self._write_error = ""
        except OutputError as error:
            self._show_write_error(error)
            return
        ready = site_status(self._folder)["ready"]
        if ready and not self._was_ready:
            self._say(self._ready_line)
        self._was_ready = ready

    def _show_write_error(self, error: OutputError) -> None:
        """Show a write error once. The processes keep running: there may be free space again soon."""
        if not self._write_error:
            self._say(str(error))
        self._write_error = str(error)
