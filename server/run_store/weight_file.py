"""Writes float32 vectors to files of the run folder, and hashes them on the way."""

from __future__ import annotations

import hashlib
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.formatting import counted
from common.protocol.codec import Vector
from common.system.files import cannot_write
from common.weights.store import open_to_overwrite, write_all
from server.run_store.state import RunError

SPARE = ".spare.part"
FLUSH_BYTES = 8 * 2**20


class WeightFile:
    """A vector on its way to a file, which appears once all of it is on disk.

    A thread of its own writes, flushes and hashes each part while the caller computes the next one, so that the final
    flush is short. The file overwrites an obsolete one, because allocating new pages for a file costs ten times as much
    as writing them.

    Parameters
    ----------
    path
        The file.
    size
        Number of values that it must have in the end.
    header
        Bytes before the values.

    Raises
    ------
    OutputError
        By all methods, if the disk is full or cannot be written.
    """

    def __init__(self, path: Path, size: int, header: bytes = b"") -> None:
        self._path = path
        self._size = size
        self._header = len(header)
        self._hash = hashlib.sha256()
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            self._file = open_to_overwrite(self._temporary, path.with_name(SPARE))
        except OSError as error:
            raise cannot_write(path, error) from None
        self._beside = ThreadPoolExecutor(1)
        self._writing = self._beside.submit(self._write, np.frombuffer(header, np.uint8))

    def add(self, values: Vector) -> None:
        """Write the next values, which must not change afterwards."""
        self._wait()
        self._writing = self._beside.submit(self._write, np.ascontiguousarray(values, "<f4").view(np.uint8))

    def finish(self) -> str:
        """Flush the file to disk, rename it to its final name, and return its SHA-256.

        Raises
        ------
        RunError
            It has not as many values as it must.
        """
        self._wait()
        try:
            written = (self._file.tell() - self._header) // 4
            if written != self._size:
                raise RunError(
                    f"{self._path.name}: {counted(written, 'weight')} do not fit the plan's model of {self._size}"
                )
            self._file.truncate(self._file.tell())
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file and remove it unless it is finished."""
        self._beside.shutdown()
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _wait(self) -> None:
        try:
            self._writing.result()
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def _write(self, content: NDArray[np.uint8]) -> None:
        write_all(self._file, content)
        self._hash.update(content.data)
        if self._file.tell() // FLUSH_BYTES > (self._file.tell() - content.size) // FLUSH_BYTES:
            os.fdatasync(self._file.fileno())
