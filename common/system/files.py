"""Atomic file writes: neither a reader nor a crash ever leaves a partial file visible."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from io import FileIO
from pathlib import Path

from common.errors import OutputError

LARGE = 2**24
"""Size in bytes from which a file bypasses the page cache."""
_BUFFER = 2**22
_ALIGNMENT = 4096


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return the error for an internal file that cannot be written."""
    return OutputError(f"{path}: cannot be written: {error.strerror or error}; free space or restore its permissions")


def write_atomically(path: Path, *parts: bytes | memoryview | str) -> None:
    """Write ``parts`` in order to a temporary file beside ``path``, flush it to disk, and rename it.

    Raises
    ------
    OutputError
        If the folder does not exist or cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        views = [memoryview(part.encode() if isinstance(part, str) else part).cast("B") for part in parts]
        if sum(map(len, views)) < LARGE or not _write_past_cache(temporary, views):
            with temporary.open("xb") as file:
                for view in views:
                    file.write(view)
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; free space or choose another"
        ) from None


def _write_past_cache(path: Path, parts: list[memoryview]) -> bool:
    """Write and flush a new file with direct I/O, bypassing the page cache; False and no file if unsupported.

    The file is flushed at once anyway, and on virtual machines allocating cache pages can take four times as long as
    everything else. Writes multiples of a page from an aligned buffer and truncates the file to its size.
    """
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o666), "wb", 0) as file:
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
