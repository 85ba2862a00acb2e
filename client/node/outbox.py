"""From an outbox to a destination: what is due, what has arrived, and what is given up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.node.folders import NodeFolders, move, names_in, read_note, write_note
from common.errors import DataError, FedvoxError

log = logging.getLogger("fedvox.node")

DESTINATION_FILE = "destination.json"
"""In an outbox: since when the destination cannot be reached, why, and when it is tried again."""

Deliver = Callable[[Sequence[Path]], Iterator[tuple[Path, str]]]
"""Sends files, and yields each that was answered with the problem, empty if the destination has it.

Raises a DataError for a file that cannot be sent, before others are; another FedvoxError if the destination cannot be
reached.
"""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes
    ----------
    first_pause, longest_pause
        Seconds between attempts: doubled from the first to the longest.
    give_up_seconds
        Age of a result from which on the next failure sets it aside.
    """

    first_pause: float = 10.0
    longest_pause: float = 900.0
    give_up_seconds: float = 72 * 3600.0

    def pause(self, attempts: int) -> float:
        """Return the seconds to wait after so many failures."""
        return min(self.first_pause * 2.0 ** min(attempts - 1, 30), self.longest_pause)


class Outbox:
    """The results for one destination.

    A result is renamed from ``outbox`` to ``sent`` after the destination has said that it has it. A process that is
    killed in between sends it again, under the same UID, which is the same result for the destination.

    Parameters
    ----------
    folders
        The state folder.
    name
        The destination's name.
    patience
        How long to try.
    clock
        Seconds since the epoch.
    """

    def __init__(
        self, folders: NodeFolders, name: str, patience: Patience, clock: Callable[[], float] = time.time
    ) -> None:
        self._name = name
        self._patience = patience
        self._clock = clock
        self._outbox, self._sent, self._unsent = (
            home / name for home in (folders.outbox, folders.sent, folders.unsent)
        )
        for folder in (self._outbox, self._sent, self._unsent):
            folder.mkdir(exist_ok=True)

    def deliver(self, send: Deliver) -> None:
        """Send what is due.

        Raises
        ------
        OSError, OutputError
            The disk fails.
        """
        due = self._due()
        if not due:
            return
        try:
            for path, problem in send(due):
                if problem:
                    self._failed(path, problem)
                else:
                    self._arrived(path)
        except DataError as error:  # a file here is damaged, which is no reason to hold up the others
            self._failed(error.path, error.problem)
        except FedvoxError as error:
            self._unreachable(str(error))
        else:
            (self._outbox / DESTINATION_FILE).unlink(missing_ok=True)

    def _due(self) -> list[Path]:
        now = self._clock()
        if read_note(self._outbox / DESTINATION_FILE).get("next", 0) > now:
            return []
        waiting = [self._outbox / name for name in names_in(self._outbox) if name.endswith(".dcm")]
        due = [path for path in waiting if read_note(_note(path)).get("next", 0) <= now]
        return sorted(due, key=lambda path: path.stat().st_mtime)

    def _arrived(self, path: Path) -> None:
        move(path, self._sent / path.name)
        _note(path).unlink(missing_ok=True)
        log.info("sent %s to %s", path.stem, self._name)

    def _failed(self, path: Path, problem: str) -> None:
        attempts = read_note(_note(path)).get("attempts", 0) + 1
        log.warning("%s did not take %s: %s", self._name, path.stem, problem)
        if not self._gave_up(path, problem):
            again = self._clock() + self._patience.pause(attempts)
            write_note(_note(path), {"attempts": attempts, "next": again, "reason": problem})

    def _unreachable(self, problem: str) -> None:
        note = self._outbox / DESTINATION_FILE
        attempts, now = read_note(note).get("attempts", 0) + 1, self._clock()
        log.warning("cannot send to %s: %s", self._name, problem)
        write_note(note, {"attempts": attempts, "next": now + self._patience.pause(attempts), "reason": problem})
        for name in names_in(self._outbox):
            if name.endswith(".dcm"):
                self._gave_up(self._outbox / name, problem)

    def _gave_up(self, path: Path, problem: str) -> bool:
        """Set a result aside if it is old enough, and return whether it was."""
        if self._clock() - path.stat().st_mtime < self._patience.give_up_seconds:
            return False
        target = self._unsent / path.name
        write_note(_note(target), {"reason": problem})
        move(path, target)
        _note(path).unlink(missing_ok=True)
        log.error("set aside %s for %s: %s", path.stem, self._name, problem)
        return True


def retry_unsent(folders: NodeFolders) -> int:
    """Put all results that were set aside back into their outboxes, at once due, and return how many there were.

    Raises
    ------
    OSError
        The disk fails.
    """
    count = 0
    for destination in names_in(folders.unsent):
        unsent = folders.unsent / destination
        for name in names_in(unsent):
            if name.endswith(".dcm"):
                os.utime(unsent / name)  # its age begins anew
                move(unsent / name, folders.outbox / destination / name)
                _note(unsent / name).unlink(missing_ok=True)
                count += 1
        (folders.outbox / destination / DESTINATION_FILE).unlink(missing_ok=True)
    return count


def _note(path: Path) -> Path:
    return path.with_suffix(".json")
