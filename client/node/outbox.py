"""From an outbox to a destination: what is due, what has arrived, and what is given up."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.node.folders import NodeFolders, destinations_in, move, read_note, results_in, write_note
from client.node.traces import damage_of, remember_sent
from common.errors import FedvoxError
from common.formatting import counted

log = logging.getLogger("fedvox.node")

DESTINATION_FILE = "destination.json"
"""In an outbox: since when the destination cannot be reached, why, and when it is tried again."""

_UNSERVED = "node.yaml sends nothing to this destination"

Deliver = Callable[[Sequence[Path]], Iterator[tuple[Path, str]]]
"""Sends files, and yields each that was answered with the problem, empty if the destination has it.

Raises a FedvoxError if the destination cannot be reached.
"""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes
    ----------
    first_pause, longest_pause
        Seconds between attempts: doubled from the first to the longest.
    give_up_seconds
        Time after the first failure from which on the next one sets a result aside.
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
        self._folders = folders
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
        due = [path for path in self._due() if self._is_whole(path)]
        if not due:
            return
        try:
            for path, problem in send(due):
                if problem:
                    self._failed(path, problem)
                else:
                    self._arrived(path)
        except FedvoxError as error:
            self._unreachable(str(error))
        else:
            (self._outbox / DESTINATION_FILE).unlink(missing_ok=True)

    def _due(self) -> list[Path]:
        if self._waits(self._outbox / DESTINATION_FILE):
            return []
        waiting = [self._outbox / name for name in results_in(self._outbox)]
        due = [path for path in waiting if not self._waits(_note(path))]
        return sorted(due, key=lambda path: path.stat().st_mtime)

    def _waits(self, note: Path) -> bool:
        """Return whether there is to be no attempt yet; a longer pause than any comes from a clock that was wrong."""
        left: float = read_note(note).get("next", 0) - self._clock()
        return 0 < left <= self._patience.longest_pause

    def _is_whole(self, path: Path) -> bool:
        """Return whether a result can be sent; note a failure if not, which holds up no other."""
        if problem := damage_of(self._folders, path):
            self._failed(path, problem)
        return not problem

    def _arrived(self, path: Path) -> None:
        remember_sent(self._folders, self._name, path.name)
        os.utime(path)  # it stays for so many days from now on
        move(path, self._sent / path.name)
        _note(path).unlink(missing_ok=True)
        log.info("sent %s to %s", path.stem, self._name)

    def _failed(self, path: Path, problem: str) -> None:
        log.warning("%s did not take %s: %s", self._name, path.stem, problem)
        if not self._gave_up(path, problem):
            known = read_note(_note(path))
            attempts = known.get("attempts", 0) + 1
            again = self._clock() + self._patience.pause(attempts)
            write_note(_note(path), {**known, "attempts": attempts, "next": again, "reason": problem})

    def _unreachable(self, problem: str) -> None:
        note = self._outbox / DESTINATION_FILE
        attempts, now = read_note(note).get("attempts", 0) + 1, self._clock()
        log.warning("cannot send to %s: %s", self._name, problem)
        write_note(note, {"attempts": attempts, "next": now + self._patience.pause(attempts), "reason": problem})
        for name in results_in(self._outbox):
            self._gave_up(self._outbox / name, problem)

    def _gave_up(self, path: Path, problem: str) -> bool:
        """Set a result aside if it failed for so long, and return whether it was."""
        known, now = read_note(_note(path)), self._clock()
        if not now - known.get("first", math.inf) >= 0:  # never before, or by a clock that was wrong
            write_note(_note(path), {**known, "first": now})
            return False
        if now - known["first"] < self._patience.give_up_seconds:
            return False
        _set_aside(path, self._unsent / path.name, problem)
        log.error("set aside %s for %s: %s", path.stem, self._name, problem)
        return True


def set_aside_unserved(folders: NodeFolders, served: Collection[str]) -> None:
    """Set aside results for destinations that are not served: sent much later, they would come as a surprise.

    Raises
    ------
    OSError, OutputError
        The disk fails.
    """
    for name in destinations_in(folders.outbox):
        outbox, unsent = folders.outbox / name, folders.unsent / name
        results = [] if name in served else results_in(outbox)
        if results:
            unsent.mkdir(exist_ok=True)
            for result in results:
                _set_aside(outbox / result, unsent / result, _UNSERVED)
            (outbox / DESTINATION_FILE).unlink(missing_ok=True)
            log.warning("set aside %s for %s: %s", counted(len(results), "result"), name, _UNSERVED)


def retry_unsent(folders: NodeFolders, served: Collection[str]) -> int:
    """Put results that were set aside back into their outboxes, at once due, and return how many.

    Parameters
    ----------
    folders
        The state folder.
    served
        Names of destinations; what is for others, or damaged, stays set aside.

    Raises
    ------
    OSError
        The disk fails.
    """
    count = 0
    for destination in served:
        outbox, unsent = folders.outbox / destination, folders.unsent / destination
        for name in results_in(unsent):
            if damage_of(folders, unsent / name):
                continue
            move(unsent / name, outbox / name)
            _note(unsent / name).unlink(missing_ok=True)
            count += 1
        (outbox / DESTINATION_FILE).unlink(missing_ok=True)
    return count


def forget(result: Path) -> None:
    """Remove a result from an outbox, or from where it was set aside.

    Raises
    ------
    OSError
        The disk fails.
    """
    _note(result).unlink(missing_ok=True)
    result.unlink(missing_ok=True)


def _set_aside(path: Path, target: Path, problem: str) -> None:
    write_note(_note(target), {"reason": problem})
    move(path, target)
    _note(path).unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_suffix(".json")
