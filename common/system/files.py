"""Atomic writes: neither a reader nor a crash ever leaves a partial file or folder visible."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from common.errors import OutputError

LARGE = 2**24
"""Size in bytes from which a file bypasses the page cache."""
OWN_FILE = "restore its permissions"
"""What to do about a file whose place is given, besides making room."""
CHOSEN_FILE = "choose another folder"
"""What to do about a file whose place somebody chose."""
PRIVATE, PUBLIC = 0o600, 0o666
"""Permissions of a file for its owner alone, and of one for all whom the umask lets read it."""
_BUFFER = 2**22
_ALIGNMENT = 4096


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk: a rename survives a power failure only from then on.

    Raises
    ------
    OSError
        If the folder cannot be opened or flushed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError, remedy: str = OWN_FILE) -> OutputError:
    """Return the error for a file that cannot be written."""
    return OutputError(f"{path}: cannot be written: {error.strerror or error}; free space or {remedy}")


def write_atomically(
    path: Path,
    *parts: bytes | memoryview | str,
    durable: bool = True,
    mode: int = PUBLIC,
    remedy: str = CHOSEN_FILE,
) -> None:
    """Write ``parts`` in order to a temporary file beside ``path``, and rename it.

    Parameters
    ----------
    path
        The file; it is replaced if it exists.
    parts
        What it will hold; text in UTF-8.
    durable
        Whether the content is flushed to disk before the rename; a power failure loses what was not.
    mode
        Permissions of the file from its first byte on, less the umask.
    remedy
        For the error: what to do, besides making room.

    Raises
    ------
    OutputError
        If the folder does not exist or cannot be written, or the disk is full.
    """
    with to_appear(path, *parts, durable=durable, mode=mode, remedy=remedy):
        pass


@contextlib.contextmanager
def to_appear(
    path: Path,
    *parts: bytes | memoryview | str,
    durable: bool = True,
    mode: int = PUBLIC,
    remedy: str = CHOSEN_FILE,
) -> Iterator[None]:
    """Write a file as ``write_atomically`` does, before a block; it appears after the block, unless that raises."""
    temporary = _temporary(path)
    try:
        with _reported(path, remedy):
            _write(temporary, parts, durable, mode)
        yield
        with _reported(path, remedy):
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_in_turn(path: Path, *parts: bytes | memoryview | str) -> None:
    """Write a file again and again, by one process and thread, without flushing it to disk.

    The temporary file always has the same name, so that a process that is killed often does not leave many of them.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    with _reported(path, OWN_FILE):
        temporary.write_bytes(b"".join(map(_bytes, parts)))
        temporary.replace(path)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder that gets its final name only when the block ends, unless the block raises.

    Returns
    -------
    Iterator[Path]
        The folder under a temporary name, to be filled.

    Raises
    ------
    OutputError
        If the folder cannot be written; by the block, too.
    """
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


@contextlib.contextmanager
def _reported(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, remedy) from None


def _bytes(part: bytes | memoryview | str) -> memoryview:
    return memoryview(part.encode() if isinstance(part, str) else part).cast("B")


def _write(path: Path, parts: tuple[bytes | memoryview | str, ...], durable: bool, mode: int) -> None:
    views = [_bytes(part) for part in parts]
    if durable and sum(map(len, views)) >= LARGE and _write_past_cache(path, views, mode):
        return
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        for view in views:
            file.write(view)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _write_past_cache(path: Path, parts: list[memoryview], mode: int) -> bool:
    """Write and flush a new file with direct I/O, bypassing the page cache; False and no file if unsupported.

    The file is flushed at once anyway, and on virtual machines allocating cache pages can take four times as long as
    everything else. Writes multiples of a page from an aligned buffer and truncates the file to its size.
    """
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, mode), "wb", 0) as file:
            buffer, filled = memoryview(mmap.mmap(-1, _BUFFER)), 0
            for part in parts:
                start = 0
                while start < len(part):
                    count = min(_BUFFER - filled, len(part) - start)
                    buffer[filled : filled + count] = part[start : start + count]
                    start, filled = start + count, filled + count
                    if filled == _BUFFER:
                        _write_all(file, buffer)
                        filled = 0
            _write_all(file, buffer[: filled + -filled % _ALIGNMENT])
            file.truncate(sum(map(len, parts)))
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # a file system without direct I/O, such as tmpfs
        return False
    return True


def _write_all(file: FileIO, data: memoryview) -> None:
    # A short write means that the disk is full or nearly full; its rest is no longer aligned, so do not retry.
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
