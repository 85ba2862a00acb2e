"""The journal of tasks on disk: no task is worked on twice or paid for twice.

Before work begins, the journal records a random name for the attempt; the privacy ledger stores it with what the
attempt pays (``client.ledger.budget``). After a crash, the runner finds the record and resumes the same attempt: its
answer was never released, so its payment still covers the work. The finished record keeps the answer and ends the
attempt; a later attempt has another name and pays for itself. A failure leaves no record.

Records are in the site's state folder, out of the courier's reach.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import DamagedFileError, OutputError
from common.protocol.codec import is_task_name
from common.system.files import flush_folder
from common.system.state_file import MISSING, put_aside, read_sealed, write_sealed

log = logging.getLogger("fedvox.runner")

KEPT = 8
"""Old records that are kept; a server repeats at most the last one or two tasks."""
_SUFFIX = ".json"
_AS_NEW = "it is put aside, and the task counts as new"


@dataclass(frozen=True)
class Record:
    """The journal's record of one task.

    Attributes
    ----------
    name
        Name of the task.
    attempt
        Random name of the attempt.
    reply
        The answer as sent; None while it is not known.
    update
        SHA-256 of the update that accompanied the answer; None without one.
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
    """Records in a folder, one file per task; the folder is created with the first record.

    Parameters
    ----------
    folder
        Folder of the records, inside the site's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._attempt = ""

    def attempt(self) -> str:
        """Return the name of the current attempt; empty if there is none."""
        return self._attempt

    def find(self, name: str) -> Record | None:
        """Return a task's record; a damaged one is put aside and counts as none, and the task is paid for again."""
        file = self._file(name)
        try:
            return _record(file, name)
        except DamagedFileError as error:
            if error.problem != MISSING:
                log.error("%s", error)
                with contextlib.suppress(OutputError):  # it is read as damaged again
                    put_aside(file)
            return None

    def distrust(self, name: str) -> None:
        """Put aside the record of an attempt that has ended: it is an older copy.

        Raises
        ------
        OutputError
            It cannot be put aside.
        """
        log.error("%s: is an older copy: the answer has left already; %s", self._file(name), _AS_NEW)
        put_aside(self._file(name))

    def begin(self, name: str) -> Record:
        """Record that work on a task begins; resume the attempt of interrupted work.

        Raises
        ------
        OutputError
            The record cannot be written.
        ValueError
            The task is done.
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
        """Record a task's answer, before it is released.

        Raises
        ------
        OutputError
            The record cannot be written.
        """
        known = self.find(name)
        self._write(Record(name, known.attempt if known else secrets.token_hex(16), reply, update))
        self._attempt = ""

    def forget(self, name: str) -> None:
        """End an attempt without a result; a later attempt pays for itself.

        Raises
        ------
        OutputError
            The record cannot be removed.
        """
        self._attempt = ""
        try:
            self._file(name).unlink(missing_ok=True)
            if self.folder.is_dir():
                flush_folder(self.folder)
        except OSError as error:
            raise OutputError(f"{self._file(name)}: cannot be removed: {error.strerror}; restore its rights") from None

    def updates(self, names: Collection[str]) -> set[str]:
        """Return the updates of those tasks that are done."""
        records = [self.find(name) for name in names]
        return {record.update for record in records if record is not None and record.update is not None}

    def trim(self, needed: Collection[str]) -> None:
        """Remove old records, except those of the tasks ``needed``."""
        found = []
        for file in self.folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                if is_task_name(file.stem) and file.stem not in needed:
                    found.append((file.stat().st_mtime_ns, file))
        for _, file in sorted(found)[:-KEPT]:
            with contextlib.suppress(OSError):  # a leftover record does no harm
                file.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if not is_task_name(name):
            raise ValueError("not a task name")
        return self.folder / f"{name}{_SUFFIX}"

    def _write(self, record: Record) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_sealed(self._file(record.name), asdict(record))
            # The file name must survive a power failure too: an answer that is released afterwards cannot be recalled.
            flush_folder(self.folder)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror}; free space") from None


def _record(file: Path, name: str) -> Record:
    content, _ = read_sealed(file, _AS_NEW)
    try:
        record = Record(**content)
    except TypeError:
        raise DamagedFileError(file, "is not a record of a task", _AS_NEW) from None
    if record.name != name:
        raise DamagedFileError(file, "is the record of another task", _AS_NEW)
    return record
