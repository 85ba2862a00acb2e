"""Vectors that a strategy keeps between rounds, as files next to the checkpoints."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.protocol.codec import Vector
from common.system.files import cannot_write
from common.weights.store import MissingWeightsError, map_file, write_all
from server.run_store.folder import RunError, RunFolder


def map_strategy_vector(folder: RunFolder, round_number: int, name: str, size: int) -> Vector:
    """Return a strategy's vector after a round, read-only and memory-mapped; zeros before the first round.

    Raises
    ------
    RunError
        If the file is missing or damaged.
    """
    if round_number == 0:
        return np.zeros(size, np.float32)
    file = folder.strategy_vector_path(round_number, name)
    try:
        content = map_file(file)
    except (OSError, MissingWeightsError):
        content = np.empty(0, np.uint8)
    if content.size != 4 * size:
        raise RunError(f"{file}: is missing or damaged; restore it from a backup, or start a new run")
    return content.view("<f4").astype(np.float32, copy=False)


@contextmanager
def strategy_vectors(
    folder: RunFolder, round_number: int, names: Sequence[str], size: int
) -> Iterator[dict[str, VectorFile]]:
    """Write the strategy's vectors after a round, part by part; they are complete and on disk after the block.

    Raises
    ------
    OutputError
        If the disk is full or cannot be written.
    RunError
        If a vector does not have ``size`` values.
    """
    files = {name: VectorFile(folder.strategy_vector_path(round_number, name), size) for name in names}
    try:
        yield files
        for file in files.values():
            file.finish()
    finally:
        for file in files.values():
            file.close()


class VectorFile:
    """Writes a vector to a file, which appears once all of it is on disk.

    Parameters
    ----------
    path
        The file.
    size
        Number of values that it must have in the end.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise cannot_write(path, error) from None

    def add(self, values: Vector) -> None:
        """Write the next values."""
        try:
            write_all(self._file, np.ascontiguousarray(values, "<f4").view(np.uint8))
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def finish(self) -> None:
        """Flush the file to disk and rename it to its final name."""
        try:
            self._file.flush()
            if self._file.tell() != 4 * self._size:
                raise RunError(f"{self._file.tell() // 4} values for {self._path.name}, {self._size} expected")
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def close(self) -> None:
        """Close the file and remove it unless it is finished."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
