"""What was done with each task, on disk: so that none is worked on twice, and none is paid for twice.

Before work begins a record says so, with a random name for this attempt, which the privacy ledger repeats beside what
the attempt pays (``client.ledger.budget``). A runner that was killed finds the record and goes on with the same
attempt: its answer was never released, so what it paid still covers the work. When the answer is known, the record
keeps it, and the attempt is over; a later one has another name and pays for itself. A failure leaves no record.

Records lie in the site's state folder, out of the courier's reach.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import OutputError
from common.protocol.codec import is_task_name
from common.system.files import write_atomically
from common.weights.digest import is_sha256

log = logging.getLogger("fedvox.runner")

KEPT = 8
"""Records of tasks that are over; a server asks again for the last one or two at most."""
_SUFFIX = ".json"


@dataclass(frozen=True)
class Record:
    """What is known of one task.

    Attributes
    ----------
    name
        of the task.
    attempt
        random name of the attempt at it.
    reply
        the answer, as it was sent; None while it is not known.
    update
        SHA-256 of the update that went beside it; None if none did.
    """

    name: str
    attempt: str
    reply: str | None = None
    update: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether the answer is known."""
        return self.reply is not None


class TaskJournal:
    """Records in a folder, a file for each task; made at the first one.

    Parameters
    ----------
    folder
        in the site's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._attempt = ""

    def attempt(self) -> str:
        """The attempt that is under way; empty if there is none."""
        return self._attempt

    def find(self, name: str) -> Record | None:
        """What is known of a task; a record that is damaged counts as none, and the task is paid for anew."""
        file = self._file(name)
        try:
            content = json.loads(file.read_bytes())
            record = Record(name, str(content["attempt"]), content["reply"], content["update"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s: is damaged or cannot be read (%s); the task counts as new", file, type(error).__name__)
            return None
        is_whole = isinstance(record.reply, str | None) and (record.update is None or is_sha256(str(record.update)))
        return record if is_whole and record.attempt else None

    def begin(self, name: str) -> Record:
        """Notes that work on a task begins; of one that was broken off it goes on with the attempt.

        Raises
        ------
        OutputError
            that cannot be written down.
        ValueError
            the task is done.
        """
        record = self.find(name)
        if record is None:
            record = Record(name, secrets.token_hex(16))
            self._write(record)
        elif record.is_done:
            raise ValueError(f"task {name} is done")
        self._attempt = record.attempt
        return record

    def finish(self, name: str, reply: str, update: str | None) -> None:
        """Notes a task's answer, before it is released.

        Raises
        ------
        OutputError
            that cannot be written down.
        """
        known = self.find(name)
        self._write(Record(name, known.attempt if known else secrets.token_hex(16), reply, update))
        self._attempt = ""

    def forget(self, name: str) -> None:
        """Ends the attempt at a task without a result: a later one pays for itself.

        Raises
        ------
        OutputError
            the record cannot be removed.
        """
        self._attempt = ""
        try:
            self._file(name).unlink(missing_ok=True)
            if self.folder.is_dir():
                _flush(self.folder)
        except OSError as error:
            raise OutputError(f"{self._file(name)}: cannot be removed: {error.strerror}; restore its rights") from None

    def updates(self, names: Collection[str]) -> set[str]:
        """The updates of those of these tasks that are done."""
        records = [self.find(name) for name in names]
        return {record.update for record in records if record is not None and record.update is not None}

    def trim(self, needed: Collection[str]) -> None:
        """Removes old records but not those of the tasks ``needed``."""
        found = []
        for file in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                if is_task_name(file.stem) and file.stem not in needed:
                    found.append((file.stat().st_mtime_ns, file))
        for _, file in sorted(found)[:-KEPT]:
            with contextlib.suppress(OSError):  # it is in nobody's way
                file.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if not is_task_name(name):
            raise ValueError("that is no name of a task")
        return self.folder / f"{name}{_SUFFIX}"

    def _write(self, record: Record) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = {key: value for key, value in asdict(record).items() if key != "name"}
            write_atomically(self._file(record.name), json.dumps(content) + "\n")
            # The new name must outlast a loss of power as well: what is released after it is not taken back.
            _flush(self.folder)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror}; free space") from None


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
