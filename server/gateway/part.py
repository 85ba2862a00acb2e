"""A partial upload: appended to a file, hashed as it arrives, and resumable."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from common.weights.store import HASH_BYTES


def part_path(folder: Path, digest: str) -> Path:
    """Return the path of an update's partial file."""
    return folder / f".{digest}.part"


class Part:
    """The file ``.SHA256.part``, renamed to ``SHA256`` when complete. Not thread-safe.

    Bytes left by an earlier process or connection are hashed first. All methods raise ``OSError`` if the disk is full
    or not writable; bytes written before that are kept.

    Parameters
    ----------
    folder
        The folder of the site's updates; created if missing.
    digest
        The expected SHA-256 of the complete file, in hexadecimal.
    length
        The size of the complete file in bytes.
    """

    def __init__(self, folder: Path, digest: str, length: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.digest = digest
        self.length = length
        self.size = 0
        self._final = folder / digest
        self._path = part_path(folder, digest)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "r+b", buffering=0)
        self._identity = _identity(os.fstat(self._file.fileno()))
        self._hash = hashlib.sha256()
        try:
            self._hash_existing()
        except BaseException:
            self._file.close()
            raise

    def append(self, portions: Sequence[bytes]) -> None:
        """Write and hash chunks, in order."""
        for portion in portions:
            view = memoryview(portion)
            while view:
                count = self._file.write(view)
                self._hash.update(view[:count])
                self.size += count
                view = view[count:]

    @property
    def is_in_place(self) -> bool:
        """Whether the open file is still at its path: the server app removes files that are no longer needed."""
        try:
            status = self._path.stat(follow_symlinks=False)
        except OSError:
            return False
        return _identity(status) == self._identity and status.st_size == self.size

    def finish(self) -> bool:
        """Rename the complete file; return False, and delete it, if its digest is wrong."""
        is_right = self._hash.hexdigest() == self.digest
        if is_right:
            self._path.replace(self._final)
        else:
            self._path.unlink(missing_ok=True)
        self.close()
        return is_right

    def close(self) -> None:
        """Close the file and keep it."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _hash_existing(self) -> None:
        if os.fstat(self._file.fileno()).st_size > self.length:
            self._file.truncate(0)
        buffer = memoryview(bytearray(min(HASH_BYTES, 2**20)))
        while count := self._file.readinto(buffer):
            self._hash.update(buffer[:count])
            self.size += count


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
