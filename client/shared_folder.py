"""The folder shared by courier and runner: everything that passes between network and scans is a file here.

| file | written by | content |
| --- | --- | --- |
| ``inbox/NAME.task`` | courier | a message of the server, as received; its weights are already there |
| ``inbox/SHA256`` | courier | weights |
| ``outbox/NAME.reply`` | runner | a SHA-256 and the answer, as it will be sent; its update is already there |
| ``outbox/SHA256`` | runner | an update |
| ``progress.json`` | runner | what it works on, for the heartbeat |

Every file is written under a temporary name, which starts with a dot, and appears by rename. The courier removes what
it has delivered: the task before the reply, because the runner works on tasks without a reply. Updates belong to the
runner: the last one stays until the next task begins, in case it is requested again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import DamagedFileError, FedvoxError
from common.protocol.codec import is_task_name
from common.protocol.messages import Heartbeat
from common.system.files import OWN_FILE, write_atomically
from common.system.locks import CannotLockError, LockHeldError, lock_file
from common.system.state_file import CHANGED, MISSING

TASK, REPLY = ".task", ".reply"


class SharedFolderError(FedvoxError):
    """The shared folder cannot be used."""


@dataclass(frozen=True)
class Work:
    """What the runner works on; ``task`` is empty while it waits."""

    task: str = ""
    step: int = 0
    steps: int = 0


class SharedFolder:
    """The files above.

    Parameters
    ----------
    path
        Path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inbox = path / "inbox"
        self.outbox = path / "outbox"

    def make(self) -> None:
        """Create the folders, for their owner and group.

        Raises
        ------
        SharedFolderError
            If they cannot be created.
        """
        try:
            for folder in (self.path, self.inbox, self.outbox):
                folder.mkdir(parents=True, exist_ok=True, mode=0o770)
        except OSError as error:
            raise SharedFolderError(
                f"{self.path}: cannot be made: {error.strerror}; create it, writable by courier and runner"
            ) from None

    def probe(self) -> None:
        """Check that files can be created here and appear by atomic rename.

        Raises
        ------
        SharedFolderError
            If they cannot.
        """
        first, second = (self.outbox / f".probe-{secrets.token_hex(6)}" for _ in range(2))
        try:
            first.write_bytes(b"first")
            second.write_bytes(b"second")
            inode = first.stat().st_ino
            first.replace(second)
            whole = second.read_bytes() == b"first" and second.stat().st_ino == inode and not first.exists()
        except OSError as error:
            raise SharedFolderError(
                f"{self.path}: cannot be written: {error.strerror}; courier and runner must both be able to write here"
            ) from None
        finally:
            for file in (first, second):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
        if not whole:
            raise SharedFolderError(f"{self.path}: files here do not appear by rename; use a folder on a local disk")

    @contextlib.contextmanager
    def held_by(self, half: str) -> Iterator[None]:
        """Make this process the only ``courier`` or ``runner`` of the folder.

        Raises
        ------
        SharedFolderError
            If there is another one, or the folder cannot be locked.
        """
        lock = self.path / f".{half}.lock"
        try:
            held = lock_file(lock, wait_seconds=0)
        except LockHeldError:
            raise SharedFolderError(
                f"{self.path}: another {half} works here; give every site a folder of its own"
            ) from None
        except CannotLockError as error:
            raise SharedFolderError(
                f"{self.path}: cannot be locked: {error.strerror}; use a folder on a local disk"
            ) from None
        except OSError as error:
            raise SharedFolderError(
                f"{lock}: cannot be made: {error.strerror}; restore the folder's permissions"
            ) from None
        with held:
            yield

    def task(self, name: str) -> Path:
        """Return the path of a task."""
        return self.inbox / f"{name}{TASK}"

    def reply(self, name: str) -> Path:
        """Return the path of an answer."""
        return self.outbox / f"{name}{REPLY}"

    def read_reply(self, name: str) -> str:
        """Return the answer to a task from its file, which ``reply_content`` made.

        Raises
        ------
        DamagedFileError
            The file is missing, cannot be read, or is not what was written for this task.
        """
        file, remedy = self.reply(name), "the runner gives its answer again"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise DamagedFileError(file, MISSING, remedy) from None
        except OSError as error:
            raise DamagedFileError(file, f"cannot be read: {error.strerror}", remedy) from None
        answer = content.partition(b"\n")[2].decode(errors="replace")
        if reply_content(name, answer).encode() != content:
            raise DamagedFileError(file, CHANGED, remedy)
        return answer

    def tasks(self) -> list[str]:
        """Return the names of the tasks in the inbox, oldest first."""
        return _names(self.inbox, TASK)

    def replies(self) -> list[str]:
        """Return the names of the answers in the outbox, oldest first."""
        return _names(self.outbox, REPLY)

    def set_work(self, work: Work) -> None:
        """Record what the runner works on; not flushed to disk.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        put_file(self.path / "progress.json", json.dumps(asdict(work)).encode())

    def work(self) -> Work:
        """Return what the runner works on."""
        try:
            content = json.loads((self.path / "progress.json").read_bytes())
            task, step, steps = content["task"], int(content["step"]), int(content["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return Work()
        return Work(task, step, steps) if is_task_name(str(task)) and 0 <= step <= steps else Work()

    def heartbeat(self, tasks: tuple[str, ...]) -> Heartbeat:
        """Return the heartbeat of a site that holds these tasks."""
        work = self.work()
        return Heartbeat(tasks, work.task, work.step, work.steps) if work.task in tasks else Heartbeat(tasks)


def reply_content(name: str, answer: str) -> str:
    """Return the content of the file that answers the task ``name``: a line with a SHA-256, then the answer."""
    return f"{hashlib.sha256(f'{name} {answer}'.encode()).hexdigest()}\n{answer}"


def put_file(path: Path, content: bytes) -> None:
    """Write a small file, which appears by rename; not flushed to disk.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_atomically(path, content, durable=False, remedy=OWN_FILE)


def _names(folder: Path, suffix: str) -> list[str]:
    found = []
    for file in folder.glob(f"*{suffix}"):
        with contextlib.suppress(FileNotFoundError):
            if is_task_name(file.stem):
                found.append((file.stat().st_mtime_ns, file.stem))
    return [name for _, name in sorted(found)]
