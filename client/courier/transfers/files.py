"""Digests of transferred files, and reports on transfers."""

from __future__ import annotations

import hashlib
import logging
from io import FileIO

BUFFER_BYTES = 2**20
log = logging.getLogger("fedvox.courier")


def file_digest(file: FileIO) -> str:
    """Return the SHA-256 of a whole file; the file position is then its end."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER_BYTES))
    file.seek(0)
    while count := file.readinto(buffer):
        total.update(buffer[:count])
    return total.hexdigest()


def tell(what: str, done: str, count: int, seconds: float) -> None:
    """Log a finished transfer and its speed."""
    megabytes = count / 1e6
    log.info("%s: %s, %.1f MB in %.2f s (%.0f MB/s)", what, done, megabytes, seconds, megabytes / max(seconds, 1e-9))
