"""What a runner must remember of its task, so that a killed one can be followed up by the next."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path


class Stage(StrEnum):
    """How far a task has come.

    CLAIMED: the token is ours. STARTED: SuperNode knows that work began. WORKING: the message was fetched; its
    content may be gone. REPLYING: SuperNode has begun to take the reply.
    """

    CLAIMED = "claimed"
    STARTED = "started"
    WORKING = "working"
    REPLYING = "replying"


@dataclass(frozen=True)
class OpenTask:
    """A task that was not given back yet; protobuf messages are in their serialised form, empty if not known.

    token: lets whoever has it answer for the task.
    """

    stage: Stage
    token: str
    context: bytes = b""
    message: bytes = b""
    tree: bytes = b""


class TaskFile:
    """Keeps one open task in a file that only its owner can read.

    It need not survive a loss of power, which also ends the SuperNode that the task belongs to, so nothing is flushed
    to disk.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, task: OpenTask) -> None:
        """Replaces what the file holds."""
        content = {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(task).items()}
        temporary = self._path.with_name(f".{self._path.name}.part")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
        temporary.replace(self._path)

    def load(self) -> OpenTask | None:
        """The open task; None if there is none, or if the file is damaged."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            values = {field.name: content[field.name] for field in fields(OpenTask)}
            packed = {name: bytes.fromhex(values[name]) for name in ("context", "message", "tree")}
            return OpenTask(Stage(values["stage"]), str(values["token"]), **packed)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self) -> None:
        """Forgets the task."""
        self._path.unlink(missing_ok=True)
