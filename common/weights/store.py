"""Content-addressed stores of weights and updates: in files for a federation, in memory for a simulation.

A store holds encoded values (``common.weights.encoding``) by the SHA-256 of their bytes. Content never changes. Files
are memory-mapped, so memory does not grow with the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import FedvoxError, OutputError
from common.weights.digest import is_sha256

Content = NDArray[np.uint8]
Part = bytes | bytearray | memoryview | NDArray[np.generic]
HASH_BYTES = 2**22
"""Bytes hashed at a time, so that they stay in the processor's cache."""
_SPARE = ".spare"


class MissingWeightsError(FedvoxError):
    """The store has no weights with this digest, or they are damaged."""


class WeightStore(Protocol):
    """Weights by their digest.

    The writing methods of a file store raise ``OutputError`` if the disk is full or cannot be written.
    """

    def put(self, parts: Iterable[Part]) -> str:
        """Store the concatenation of ``parts`` and return its digest."""

    def get(self, digest: str) -> Content:
        """Return the bytes of the weights, read-only. Do not use them after dropping the weights.

        Raises
        ------
        MissingWeightsError
            If there are none with this digest.
        """

    def keep(self, digests: Collection[str]) -> None:
        """Drop all weights except these."""

    def drop(self, digest: str) -> None:
        """Drop the weights if they exist."""


class MemoryStore:
    """A ``WeightStore`` in memory, for simulations in one process."""

    def __init__(self) -> None:
        self._contents: dict[str, Content] = {}

    def put(self, parts: Iterable[Part]) -> str:
        """Store a copy of the concatenation of ``parts`` and return its digest."""
        total, contents = hashlib.sha256(), []
        for part in parts:
            content = _as_bytes(part)
            total.update(content.data)
            contents.append(content)
        digest = total.hexdigest()
        whole = np.concatenate(contents) if contents else np.empty(0, np.uint8)
        whole.flags.writeable = False
        self._contents[digest] = whole
        return digest

    def get(self, digest: str) -> Content:
        """Return the stored bytes, without a copy."""
        try:
            return self._contents[digest]
        except KeyError:
            raise MissingWeightsError(f"there are no weights {digest[:12]}") from None

    def keep(self, digests: Collection[str]) -> None:
        """Drop all weights except these."""
        self._contents = {digest: content for digest, content in self._contents.items() if digest in digests}

    def drop(self, digest: str) -> None:
        """Drop the weights if they exist."""
        self._contents.pop(digest, None)


class FileStore:
    """A ``WeightStore`` in a folder with one file per content; several processes may share it.

    New content overwrites the file of dropped content: allocating fresh pages takes ten times as long as writing.

    Parameters
    ----------
    folder
        The folder; created by the first ``put``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Return the path for a digest, whether or not the weights exist.

        Raises
        ------
        MissingWeightsError
            If this is not a digest.
        """
        if not is_sha256(digest):
            raise MissingWeightsError("not a SHA-256, so there are no weights with that name")
        return self.folder / digest

    def put(self, parts: Iterable[Part]) -> str:
        """Write to a temporary file, hash while writing, rename it, and return the digest.

        Parameters
        ----------
        parts
            Content. Each part is written while the next one is computed, so it must not change afterwards.
        """
        total = hashlib.sha256()
        with _reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{secrets.token_hex(8)}.part"
            try:
                with open_to_overwrite(temporary, self.folder / _SPARE) as file, ThreadPoolExecutor(1) as beside:

                    def add(part: Part) -> None:
                        content = _as_bytes(part)
                        write_all(file, content)
                        total.update(content.data)

                    writing = beside.submit(add, b"")
                    for part in parts:
                        writing.result()
                        writing = beside.submit(add, part)
                    writing.result()
                    file.truncate(file.tell())
                temporary.replace(self.path(total.hexdigest()))
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return total.hexdigest()

    def get(self, digest: str) -> Content:
        """Return the memory-mapped file."""
        return map_file(self.path(digest))

    def verified(self, digest: str) -> Content:
        """Return the content as ``get`` does, after verifying its digest.

        Raises
        ------
        MissingWeightsError
            If there are none, or the file does not match its digest.
        """
        content = map_file(self.path(digest))
        if digest_of(content) != digest:
            raise MissingWeightsError(f"{self.path(digest)}: was changed or damaged: its SHA-256 is not its name")
        return content

    def keep(self, digests: Collection[str]) -> None:
        """Drop all files except these, including partially written ones."""
        with _reported(self.folder):
            for file in self.folder.iterdir() if self.folder.is_dir() else ():
                if file.name not in digests and file.name != _SPARE:
                    self._discard(file)

    def drop(self, digest: str) -> None:
        """Drop the weights if they exist."""
        with _reported(self.folder):
            self._discard(self.path(digest))

    def _discard(self, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            file.replace(self.folder / _SPARE)


def digest_of(content: Content) -> str:
    """Return the SHA-256 of the content in hexadecimal digits."""
    total = hashlib.sha256()
    for start in range(0, len(content), HASH_BYTES):
        total.update(content[start : start + HASH_BYTES].data)
    return total.hexdigest()


def map_file(path: Path, offset: int = 0) -> Content:
    """Memory-map a file's bytes from ``offset`` on, read-only.

    Raises
    ------
    MissingWeightsError
        If the file is missing, cannot be read, or is shorter than ``offset``.
    """
    try:
        size = path.stat().st_size - offset
        if size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r", offset, (size,)).view(np.ndarray)
    except (OSError, ValueError):
        raise MissingWeightsError(f"{path}: is missing or cannot be read") from None


def open_to_overwrite(path: Path, spare: Path) -> BinaryIO:
    """Open a new file at ``path``, reusing the pages of ``spare`` if it exists; truncate it after writing."""
    with contextlib.suppress(FileNotFoundError):
        spare.replace(path)
        return path.open("r+b", buffering=0)
    return path.open("xb", buffering=0)


def _as_bytes(part: Part) -> Content:
    if isinstance(part, np.ndarray):
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    return np.frombuffer(part, np.uint8)


def write_all(file: BinaryIO, content: Content) -> None:
    """Write all bytes to an unbuffered file."""
    view = content.data
    while view:
        view = view[file.write(view) :]


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise OutputError(f"{folder}: cannot be written: {reason}; free space or restore its permissions") from None
