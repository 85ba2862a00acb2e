"""Where models and updates wait to be fetched: in files for a network, in memory for a simulation.

What is stored is raw values (``common.weights.encoding``) under the SHA-256 of its bytes, and never changes. Reading
maps a file instead of loading it, so that memory does not grow with the model.
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
"""At a time, where a whole file is hashed: it then stays in the processor's cache."""
_SPARE = ".spare"


class MissingWeightsError(FedvoxError):
    """There are no weights of this digest, or they are damaged."""


class WeightStore(Protocol):
    """Weights by their digest.

    All methods of a store in files raise ``OutputError`` where the disk is full or cannot be written.
    """

    def put(self, parts: Iterable[Part]) -> str:
        """Stores what ``parts`` give one after another; its digest."""

    def get(self, digest: str) -> Content:
        """The bytes of some weights, read-only. They must not be used any more once they were dropped.

        Raises
        ------
        MissingWeightsError
            there are none.
        """

    def keep(self, digests: Collection[str]) -> None:
        """Drops all but these."""

    def drop(self, digest: str) -> None:
        """Forgets some weights if they are there."""


class MemoryStore:
    """A ``WeightStore`` for one process: a simulation's."""

    def __init__(self) -> None:
        self._contents: dict[str, Content] = {}

    def put(self, parts: Iterable[Part]) -> str:
        """Stores a copy."""
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
        """The stored bytes themselves."""
        try:
            return self._contents[digest]
        except KeyError:
            raise MissingWeightsError(f"there are no weights {digest[:12]}") from None

    def keep(self, digests: Collection[str]) -> None:
        """Drops all but these."""
        self._contents = {digest: content for digest, content in self._contents.items() if digest in digests}

    def drop(self, digest: str) -> None:
        """Forgets some weights."""
        self._contents.pop(digest, None)


class FileStore:
    """A ``WeightStore`` in a folder, a file for each content; several processes may share it.

    Dropped content is written over by the next: fresh pages of a file cost ten times as much as the writing.

    Parameters
    ----------
    folder
        made at the first ``put``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where some weights lie, whether or not they are there.

        Raises
        ------
        MissingWeightsError
            this is no digest.
        """
        if not is_sha256(digest):
            raise MissingWeightsError("that is no SHA-256, so there are no weights of that name")
        return self.folder / digest

    def put(self, parts: Iterable[Part]) -> str:
        """Writes to a temporary name, hashes on the way, and renames.

        Parameters
        ----------
        parts
            written while the next one is worked out, so none may change afterwards.
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
        """The file, mapped."""
        return map_file(self.path(digest))

    def verified(self, digest: str) -> Content:
        """As ``get``, after reading all of it once.

        Raises
        ------
        MissingWeightsError
            there are none, or the file holds something else.
        """
        content = map_file(self.path(digest))
        if digest_of(content) != digest:
            raise MissingWeightsError(f"{self.path(digest)}: was changed or damaged: its SHA-256 is not its name")
        return content

    def keep(self, digests: Collection[str]) -> None:
        """Drops all files but these, and what was left half-written."""
        with _reported(self.folder):
            for file in self.folder.iterdir() if self.folder.is_dir() else ():
                if file.name not in digests and file.name != _SPARE:
                    self._discard(file)

    def drop(self, digest: str) -> None:
        """Forgets some weights."""
        with _reported(self.folder):
            self._discard(self.path(digest))

    def _discard(self, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            file.replace(self.folder / _SPARE)


def digest_of(content: Content) -> str:
    """SHA-256 of some weights, in hexadecimal digits."""
    total = hashlib.sha256()
    for start in range(0, len(content), HASH_BYTES):
        total.update(content[start : start + HASH_BYTES].data)
    return total.hexdigest()


def map_file(path: Path, offset: int = 0) -> Content:
    """A file's bytes from ``offset`` on, read-only and mapped: pages are read when they are looked at.

    Raises
    ------
    MissingWeightsError
        the file is not there, or shorter than ``offset``.
    """
    try:
        size = path.stat().st_size - offset
        if size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r", offset, (size,)).view(np.ndarray)
    except (OSError, ValueError):
        raise MissingWeightsError(f"{path}: is not there, or cannot be read") from None


def open_to_overwrite(path: Path, spare: Path) -> BinaryIO:
    """A new file at ``path``, in the pages of ``spare`` where there is one: to be truncated when it is written."""
    with contextlib.suppress(FileNotFoundError):
        spare.replace(path)
        return path.open("r+b", buffering=0)
    return path.open("xb", buffering=0)


def _as_bytes(part: Part) -> Content:
    if isinstance(part, np.ndarray):
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    return np.frombuffer(part, np.uint8)


def write_all(file: BinaryIO, content: Content) -> None:
    """Writes all bytes to an unbuffered file."""
    view = content.data
    while view:
        view = view[file.write(view) :]


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise OutputError(f"{folder}: cannot be written: {reason}; free space or restore its rights") from None
