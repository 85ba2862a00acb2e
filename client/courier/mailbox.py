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
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.courier.flower_messages import Arrival, PackedReply, identity_of
from client.shared_folder import put_file
from common.errors import ProtocolError
from common.protocol.codec import Question, is_task_name, unpack_question
from common.protocol.messages import Task
from common.system.files import cannot_write

MESSAGE, SENT = ".json", ".sent"
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
            content = {"header": base64.b64encode(task.header).decode(), "text": task.text}
            put_file(self._file(task.name, MESSAGE), json.dumps(content).encode())
            self._tasks[task.name] = task
        if is_new:
            self._on_change()

    def sent(self, name: str) -> PackedReply | None:
        """Return the packed reply of a task; None if there is none or it is damaged."""
        file = self._file(name, SENT)
        try:
            return PackedReply.from_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            log.warning("%s: damaged; the reply is packed again", file)
            return None

    def put_sent(self, name: str, reply: PackedReply) -> None:
        """Store a packed reply before it is announced.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        put_file(self._file(name, SENT), reply.to_json())

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
    try:
        content = json.loads(file.read_bytes())
        task = HeldTask(file.stem, base64.b64decode(content["header"], validate=True), str(content["text"]))
        if not task.message:
            raise ValueError("no message")
        return task
    except Exception:  # protobuf raises its own errors
        log.warning("%s: damaged and ignored; the server redelivers the task", file)
        return None
