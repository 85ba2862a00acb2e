"""What the courier has received and not answered yet, in files: it may be killed at any moment.

| file | what it is |
| --- | --- |
| ``NAME.json`` | the newest message that asks for task NAME: Flower's header, and our JSON |
| ``NAME.sent`` | the reply as it is announced to Flower, to the bit |
| ``node.json`` | Flower's number of this node |

Nothing is flushed to disk. After a loss of power the server sees what the site does not hold, and sends it again.
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
    """A task by its newest message.

    Attributes
    ----------
    name
        the task's.
    header
        of Flower's message.
    text
        ours, as JSON, as it came; it may be none at all.
    """

    name: str
    header: bytes
    text: str

    @property
    def message(self) -> str:
        """Flower's identity of the message."""
        return identity_of(self.header)

    @property
    def question(self) -> Question | None:
        """What is asked; None if it cannot be read."""
        return read_question(self.text)

    @property
    def model(self) -> str | None:
        """The weights that it needs; None if none."""
        question = self.question
        return question.model if isinstance(question, Task) else None


def read_question(text: str) -> Question | None:
    """A message of the server's; None if it is none."""
    try:
        return unpack_question(text)
    except ProtocolError:
        return None


def held_task(arrival: Arrival, text: str) -> HeldTask:
    """A message that has just come; one that names no task has the name of Flower's message."""
    question = read_question(text)
    name = question.name if isinstance(question, Task) else arrival.message[:32]
    return HeldTask(name, arrival.header, text)


class Mailbox:
    """The files above, which one process writes. Thread-safe; ``lock`` makes several calls one.

    Parameters
    ----------
    folder
        made if it is not there; what is in it is read once, now.
    on_change
        called whenever another set of tasks is held.

    Raises
    ------
    OutputError
        the folder cannot be made.
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
        """Where the node's number is noted."""
        return self.folder / "node.json"

    def names(self) -> tuple[str, ...]:
        """The tasks that are held, oldest first."""
        with self.lock:
            return tuple(self._tasks)

    def get(self, name: str) -> HeldTask:
        """A task that is held, by its newest message."""
        with self.lock:
            return self._tasks[name]

    def put(self, task: HeldTask) -> None:
        """Holds a task; a message that came before for the same one is forgotten.

        Raises
        ------
        OutputError
            it cannot be written.
        """
        with self.lock:
            is_new = task.name not in self._tasks
            content = {"header": base64.b64encode(task.header).decode(), "text": task.text}
            put_file(self._file(task.name, MESSAGE), json.dumps(content).encode())
            self._tasks[task.name] = task
        if is_new:
            self._on_change()

    def sent(self, name: str) -> PackedReply | None:
        """The reply of a task that was packed; None if there is none, or it is damaged."""
        file = self._file(name, SENT)
        try:
            return PackedReply.from_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            log.warning("%s: is damaged and packed anew", file)
            return None

    def put_sent(self, name: str, reply: PackedReply) -> None:
        """Keeps a packed reply, before it is announced.

        Raises
        ------
        OutputError
            it cannot be written.
        """
        put_file(self._file(name, SENT), reply.to_json())

    def needs(self, model: str, besides: str) -> bool:
        """Whether another task than ``besides`` needs these weights."""
        with self.lock:
            return any(task.model == model for name, task in self._tasks.items() if name != besides)

    def models(self) -> frozenset[str]:
        """All weights that are needed."""
        with self.lock:
            return frozenset(task.model for task in self._tasks.values() if task.model is not None)

    def remove(self, name: str) -> None:
        """Forgets a task.

        Raises
        ------
        OutputError
            its files cannot be removed.
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
    except Exception:  # protobuf has errors of its own
        log.warning("%s: is damaged and left alone; the server sends the task again", file)
        return None
