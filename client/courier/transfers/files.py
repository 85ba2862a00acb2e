"""Files that are carried: their digests, and how long it took."""

from __future__ import annotations

import hashlib
import logging
from io import FileIO

BUFFER_BYTES = 2**20
log = logging.getLogger("fedvox.courier")


def file_digest(file: FileIO) -> str:
    """SHA-256 of a file from its beginning; the file is then at its end."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER_BYTES))
    file.seek(0)
    while count := file.readinto(buffer):
        total.update(buffer[:count])
    return total.hexdigest()


def tell(what: str, done: str, count: int, seconds: float) -> None:
    """Says that a file has arrived, and how fast."""
    megabytes = count / 1e6
    log.info("%s: %s, %.1f MB in %.2f s (%.0f MB/s)", what, done, megabytes, seconds, megabytes / max(seconds, 1e-9))
