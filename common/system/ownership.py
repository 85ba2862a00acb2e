"""Folders that one process at a time owns, and that a refused start leaves as they were."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path

from common.errors import FedvoxError, OutputError
from common.system.files import CHOSEN_FILE, cannot_write
from common.system.locks import CannotLockError, LockHeldError, lock_file

_PROBES_END_SECONDS = 1.0
"""Whoever asks whether a lock is held holds a shared one for an instant."""
_TRIES = 100


class Claim:
    """What an owner may do with its folder.

    Parameters
    ----------
    folder
        The folder.
    before
        Names of what was in it when it was locked.

    Attributes
    ----------
    kept
        Whether what the owner made in the folder stays if the owner fails.
    """

    def __init__(self, folder: Path, before: set[str]) -> None:
        self._folder = folder
        self.before = before
        self.kept = False

    def keep(self) -> None:
        """Let everything stay from now on."""
        self.kept = True

    def clear(self, name: str) -> None:
        """Remove a file or folder that was there before, with everything in it, as far as possible."""
        _remove(self._folder / name)
        self.before.discard(name)

    def clean(self, lock: str, removable: Collection[str]) -> None:
        """Remove what is new, unless it is kept."""
        if self.kept:
            return
        with contextlib.suppress(OSError):
            for path in list(self._folder.iterdir()):
                if path.name in removable and path.name not in self.before:
                    _remove(path)
            if lock not in self.before:
                (self._folder / lock).unlink(missing_ok=True)


@contextlib.contextmanager
def owned(
    folder: Path,
    lock: str,
    taken: Callable[[str], FedvoxError],
    removable: Collection[str] = (),
    mode: int = 0o777,
) -> Iterator[Claim]:
    """Own a folder for a block; make it if it is missing.

    The lock file comes first and says who holds it. The kernel releases it however the owner ends. If the block raises
    before it keeps its claim, everything removable that is new in the folder goes, and so do the lock file and the
    folders that were made.

    Parameters
    ----------
    folder
        The folder.
    lock
        Name of the lock file in it.
    taken
        Makes the error for a folder with another owner from a description of that owner.
    removable
        Names of files and folders that the block makes.
    mode
        Permissions of a new folder, less the umask.

    Raises
    ------
    FedvoxError
        From ``taken``.
    OutputError
        The folder cannot be made or locked.
    """
    made: list[Path] = []
    try:
        with _locked(folder, lock, taken, mode, made) as (descriptor, before):
            claim = Claim(folder, before)
            try:
                _write_owner(descriptor)
                yield claim
                claim.keep()
            finally:
                claim.clean(lock, removable)
    finally:
        _remove_empty(made)


def owner_of(file: Path) -> str:
    """Describe, from a lock file, the process that owns its folder."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return f"process {content['pid']} on {content['host']}, since {content['since']}: {content['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has just started"


@contextlib.contextmanager
def _locked(
    folder: Path, lock: str, taken: Callable[[str], FedvoxError], mode: int, made: list[Path]
) -> Iterator[tuple[int, set[str]]]:
    """Yield the descriptor of the locked file, and the names that were in the folder before."""
    file = folder / lock
    for _ in range(_TRIES):
        made += _make(folder, mode)
        try:
            held = lock_file(file, wait_seconds=_PROBES_END_SECONDS, mode=0o666)
        except LockHeldError:
            raise taken(owner_of(file)) from None
        except FileNotFoundError:
            continue  # a refused start has just removed the folder
        except CannotLockError as error:
            problem = f"cannot be locked: {error.strerror or error}; choose a folder on a local disk"
            raise OutputError(f"{file}: {problem}") from None
        except OSError as error:
            raise cannot_write(file, error, CHOSEN_FILE) from None
        with held as descriptor:
            if _is(file, descriptor):
                before = {path.name for path in folder.iterdir()}
                if not os.fstat(descriptor).st_size:
                    before.discard(lock)  # it is new: no owner has written itself down yet
                yield descriptor, before
                return
    raise taken("another process, which has just ended")


def _make(folder: Path, mode: int) -> list[Path]:
    """Make a folder and its parents; return those that were missing."""
    made = []
    try:
        for path in [*reversed(folder.parents), folder]:
            if not path.exists():
                path.mkdir(mode=mode if path == folder else 0o777, exist_ok=True)
                made.append(path)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        _remove_empty(made)
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}; {CHOSEN_FILE}") from None
    return made


def _is(file: Path, descriptor: int) -> bool:
    """Return whether a file still has this name; the one that was locked may have been removed before that."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _write_owner(descriptor: int) -> None:
    program = Path(sys.argv[0])
    name = program.parent.parent.name if program.name == "__main__.py" else program.name
    content = {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([name, *sys.argv[1:]]),
    }
    with contextlib.suppress(OSError):  # a full disk is told by whoever writes what matters
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode(), 0)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for path in reversed(folders):
        with contextlib.suppress(OSError):
            path.rmdir()
