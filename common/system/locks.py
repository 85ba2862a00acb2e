"""Locks between processes: the kernel releases them however their holder ends."""

from __future__ import annotations

import fcntl
import math
import os
import time
from pathlib import Path

from common.errors import FedvoxError
from common.system.files import cannot_write

_PAUSE_SECONDS = 0.1


class LockHeldError(FedvoxError):
    """Another process, or another part of this one, holds the lock."""


class CannotLockError(OSError):
    """The file was opened, but its file system has no locks."""


class FileLock:
    """A lock that is held already, until the end of the block that it is used with.

    Parameters
    ----------
    descriptor
        The locked file, which the block gets. A child that keeps it open would keep the lock, so it is not inherited.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> int:
        """Return the descriptor of the locked file."""
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        """Close the file, which releases the lock."""
        os.close(self._descriptor)


def lock_file(
    path: Path,
    *,
    shared: bool = False,
    wait_seconds: float = math.inf,
    flags: int = os.O_RDWR | os.O_CREAT,
    mode: int = 0o600,
) -> FileLock:
    """Lock a file, or a folder, before this returns; errors of the block that follows are therefore not mixed up.

    Parameters
    ----------
    path
        What to lock.
    shared
        Whether others may hold a shared lock at the same time.
    wait_seconds
        How long to wait for a holder: 0 does not wait, infinity waits for as long as it takes.
    flags
        Of ``os.open``. By default a missing file is created, and a symbolic link is followed: ``os.O_NOFOLLOW``.
    mode
        Permissions of a file that is created.

    Raises
    ------
    LockHeldError
        If somebody else still holds the lock.
    CannotLockError
        If the file system has no locks.
    OSError
        If the file cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        _lock(path, descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_seconds)
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


def lock_for_one(path: Path, taken: FedvoxError, mode: int = 0o600) -> FileLock:
    """Lock a file for the only process of its kind, without waiting for a holder.

    Parameters
    ----------
    path
        What to lock.
    taken
        The error if another process holds the lock.
    mode
        Permissions of a file that is created.

    Raises
    ------
    FedvoxError
        ``taken``.
    OutputError
        If the file cannot be opened or locked.
    """
    try:
        return lock_file(path, wait_seconds=0, mode=mode)
    except LockHeldError:
        raise taken from None
    except OSError as error:
        raise cannot_write(path, error) from None


def is_locked(path: Path) -> bool:
    """Return whether somebody holds an exclusive lock on a file; False if there is no file.

    Raises
    ------
    OSError
        If the file cannot be opened or locked.
    """
    try:
        # A shared lock, for an instant: whoever looks at the same time is not taken for a holder.
        with lock_file(path, shared=True, wait_seconds=0, flags=os.O_RDONLY):
            return False
    except LockHeldError:
        return True
    except FileNotFoundError:
        return False


def _lock(path: Path, descriptor: int, kind: int, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    at_once = 0 if wait_seconds == math.inf else fcntl.LOCK_NB
    while True:
        try:
            fcntl.flock(descriptor, kind | at_once)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockHeldError(f"{path}: another process holds this lock") from None
        except OSError as error:
            raise CannotLockError(error.errno, error.strerror, str(path)) from None
        time.sleep(_PAUSE_SECONDS)
