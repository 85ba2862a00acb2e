"""Stores received messages in files until they are answered: the courier may be killed at any moment.

| file | content |
| --- | --- |
| ``NAME.json`` | the newest message for task NAME: Flower's header and our JSON |
| ``NAME.sent`` | the reply exactly as announced to Flower |
| ``node.json`` | Flower's ID of this node |

Nothing is flushed to disk: after a power failure the server redelivers what the site no longer holds.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.courier.flower_messages import Arrival, PackedReply, identity_of
from common.errors import DamagedFileError, OutputError, ProtocolError
from common.protocol.codec import Question, is_task_name, unpack_question
from common.protocol.messages import Task
from common.system.files import cannot_write
from common.system.state_file import MISSING, put_aside, read_sealed, write_sealed

MESSAGE, SENT = ".json", ".sent"
_OWN = "file"
log = logging.getLogger("fedvox.courier")


@dataclass(frozen=True)
class HeldTask:
    """A task with its newest message.

    Attributes
    ----------
    name
        Name of the task.
    header
        Header of Flower's message.
    text
        Our message as JSON, as received; it may be invalid.
    """

    name: str
    header: bytes
    text: str

    @property
    def message(self) -> str:
        """Flower's message ID."""
        return identity_of(self.header)

    @property
    def question(self) -> Question | None:
        """What the message asks; None if it cannot be read."""
        return read_question(self.text)

    @property
    def model(self) -> str | None:
        """Digest of the weights that the task needs; None if it needs none."""
        question = self.question
        return question.model if isinstance(question, Task) else None


def read_question(text: str) -> Question | None:
    """Parse a message of the server; return None if it is invalid."""
    try:
        return unpack_question(text)
    except ProtocolError:
        return None


def held_task(arrival: Arrival, text: str) -> HeldTask:
    """Return the task of a new message; without a name of its own, it takes Flower's message ID."""
    question = read_question(text)
    name = question.name if isinstance(question, Task) else arrival.message[:32]
    return HeldTask(name, arrival.header, text)


class Mailbox:
    """The files above, written by one process. Thread-safe; hold ``lock`` to make several calls atomic.

    Parameters
    ----------
    folder
        Created if missing; read once, by the constructor.
    on_change
        Called whenever the set of held tasks changes.

    Raises
    ------
    OutputError
        If the folder cannot be created.
    """

    def __init__(self, folder: Path, on_change: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self._on_change = on_change
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise cannot_write(folder, error) from None
        self._tasks = {task.name: task for file in _oldest_first(folder) if (task := _read(file)) is not None}

    @property
    def node_file(self) -> Path:
        """File with the node's ID."""
        return self.folder / "node.json"

    def names(self) -> tuple[str, ...]:
        """Return the names of the held tasks, oldest first."""
        with self.lock:
            return tuple(self._tasks)

    def get(self, name: str) -> HeldTask:
        """Return a held task with its newest message."""
        with self.lock:
            return self._tasks[name]

    def put(self, task: HeldTask) -> None:
        """Hold a task; its newest message replaces earlier ones.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        with self.lock:
            is_new = task.name not in self._tasks
            header = base64.b64encode(task.header).decode()
            write_kept(self._file(task.name, MESSAGE), {"header": header, "text": task.text})
            self._tasks[task.name] = task
        if is_new:
            self._on_change()

    def sent(self, name: str) -> PackedReply | None:
        """Return the packed reply of a task; None if there is none or it is damaged and put aside."""
        content = read_kept(self._file(name, SENT), "it is put aside, and the reply packed again")
        try:
            return None if content is None else PackedReply.from_values(content)
        except ValueError:
            return None  # of an earlier version

    def put_sent(self, name: str, reply: PackedReply) -> None:
        """Store a packed reply before it is announced.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        write_kept(self._file(name, SENT), reply.as_values())

    def needs(self, model: str, besides: str) -> bool:
        """Return whether a task other than ``besides`` needs these weights."""
        with self.lock:
            return any(task.model == model for name, task in self._tasks.items() if name != besides)

    def models(self) -> frozenset[str]:
        """Return the digests of all weights that held tasks need."""
        with self.lock:
            return frozenset(task.model for task in self._tasks.values() if task.model is not None)

    def remove(self, name: str) -> None:
        """Forget a task.

        Raises
        ------
        OutputError
            If its files cannot be removed.
        """
        with self.lock:
            try:
                for suffix in (SENT, MESSAGE):
                    self._file(name, suffix).unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(self.folder, error) from None
            self._tasks.pop(name, None)
        self._on_change()

    def _file(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}{suffix}"


def _oldest_first(folder: Path) -> list[Path]:
    found = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if file.suffix == MESSAGE and is_task_name(file.stem):
                found.append((file.stat().st_mtime_ns, file))
    return [file for _, file in sorted(found)]


def _read(file: Path) -> HeldTask | None:
    content = read_kept(file, "it is put aside; the server redelivers the task")
    if content is None:
        return None
    return HeldTask(file.stem, base64.b64decode(content["header"]), content["text"])


def write_kept(file: Path, content: Mapping[str, Any]) -> None:
    """Write what the courier keeps in a file; not flushed to disk.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_sealed(file, {_OWN: file.name, **content}, durable=False)


def read_kept(file: Path, consequence: str) -> dict[str, Any] | None:
    """Return what the courier keeps in a file; None if there is none, or it is damaged, which is logged, and put aside.

    Parameters
    ----------
    file
        The file.
    consequence
        What follows from its damage, for the log.
    """
    try:
        content, _ = read_sealed(file, consequence)
        if content.get(_OWN) != file.name:
            raise DamagedFileError(file, "is a copy of another file", consequence)
        return content
    except DamagedFileError as error:
        if error.problem != MISSING:
            log.warning("%s", error)
            with contextlib.suppress(OutputError):  # it is read as damaged again
                put_aside(file)
        return None
