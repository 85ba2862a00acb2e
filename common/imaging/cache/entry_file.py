"""Cache files: a few arrays and some metadata each, verified when opened and memory-mapped.

An entry's name is a digest of everything that determines its content, so it is never out of date: a changed source
file or setting leads to another name. Entries are written to a temporary file and renamed, so two processes that write
the same entry cannot corrupt it.

Layout: magic, length and CRC-32 of the header (little-endian), the header as JSON, the arrays aligned to 64 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import secrets
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DamagedFileError, DataError, OutputError
from common.system.state_file import MISSING, put_aside, read_sealed, sealed

ENTRY_SUFFIX = ".fedvox"
TEMPORARY_SUFFIX = ".fedvox-tmp"
DIGESTS_NAME = "digests.fedvox-json"

_MAGIC = b"FEDVOX01"
_PREFIX = struct.Struct("<8sII")
_ALIGNMENT = 64
_TYPES = ("float32", "uint8", "int32")
# A file written twice within the clock's resolution may keep its time stamp, so recent files are hashed again.
_SETTLED_NS = 2_000_000_000

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Entry:
    """Content of an entry; arrays are read-only and, if they come from a file, memory-mapped."""

    metadata: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def digest_json(value: object) -> str:
    """Return a digest (32 hexadecimal digits) of a JSON value; the order of keys in objects does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_entry(folder: Path, key: str, entry: Entry) -> None:
    """Write an entry, replacing one with the same key.

    Raises
    ------
    OutputError
        If the folder cannot be created or written, or the disk is full; nothing is left behind.
    """
    descriptions: list[list[Any]] = []
    blocks: list[bytes | memoryview] = []
    offset = 0
    for name, values in entry.arrays.items():
        block = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        padding = bytes(-offset % _ALIGNMENT)
        offset += len(padding)
        descriptions.append([name, values.dtype.name, list(values.shape), offset])
        blocks += [padding, block]
        offset += len(block)
    checksum = 0
    for written in blocks:
        checksum = zlib.crc32(written, checksum)
    content = {"key": key, "metadata": entry.metadata, "arrays": descriptions, "size": offset, "checksum": checksum}
    header = json.dumps(content).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
    write_cache_file(
        folder / (key + ENTRY_SUFFIX), [_PREFIX.pack(_MAGIC, len(header), zlib.crc32(header)), header, *blocks]
    )


def read_entry(folder: Path, key: str) -> Entry | None:
    """Open an entry; return None if there is none or it is damaged (every byte is checked)."""
    path = folder / (key + ENTRY_SUFFIX)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # ValueError: the file is empty
        _logger.warning("%s cannot be read and is recreated", path)
        return None
    entry = _parse(data, key)
    if entry is None:
        _logger.warning("%s is damaged and is recreated", path)
    return entry


def _parse(data: mmap.mmap, key: str) -> Entry | None:
    if len(data) < _PREFIX.size:
        return None
    magic, header_size, header_checksum = _PREFIX.unpack_from(data)
    start = _PREFIX.size + header_size
    header = data[_PREFIX.size : start]
    if magic != _MAGIC or len(header) != header_size or zlib.crc32(header) != header_checksum:
        return None
    content = json.loads(header)
    if content["key"] != key or len(data) != start + content["size"]:
        return None
    if zlib.crc32(memoryview(data)[start:]) != content["checksum"]:
        return None
    arrays = {}
    for name, type_name, shape, offset in content["arrays"]:
        if type_name not in _TYPES:
            return None
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, type_name, count, start + offset).reshape(shape)
    return Entry(content["metadata"], arrays)


def write_cache_file(path: Path, blocks: list[bytes | memoryview]) -> None:
    """Write a cache file under a temporary name and rename it.

    Raises
    ------
    OutputError
        If it cannot be written; the temporary file is removed.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        # The cache is as confidential as the scans.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.writelines(blocks)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path.parent}: the cache cannot be written ({reason}): "
            "free some space, choose another cache folder, or disable the cache"
        ) from error


def _blake2b(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class FileDigests:
    """Digests of file contents, cached while a file's size and time stamps stay the same.

    Parameters
    ----------
    folder
        Folder that stores the digests; None stores nothing.
    name
        Name of the file in that folder.
    compute
        Function that returns a file's digest in hexadecimal; by default 128-bit BLAKE2b of its bytes.
    """

    def __init__(
        self, folder: Path | None, name: str = DIGESTS_NAME, compute: Callable[[Path], str] | None = None
    ) -> None:
        self._path = folder / name if folder else None
        self._compute = compute or _blake2b
        self._known = self._load()
        self._new: dict[str, list[Any]] = {}

    def digest(self, path: Path) -> str:
        """Return the digest of a file's content.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        try:
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            name = str(path.absolute())
            known = self._known.get(name)
            if known is not None and known[:3] == state:
                return str(known[3])
            digest = self._compute(path)
        except OSError as error:
            raise DataError(path, f"cannot be read ({error.strerror or error})") from error
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            self._known[name] = self._new[name] = [*state, digest]
        return digest

    def save(self) -> None:
        """Write new digests, merged with those that other processes have written meanwhile.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        if self._path is None or not self._new:
            return
        new, self._new = self._new, {}
        merged = {**self._load(), **new}
        write_cache_file(self._path, [sealed(merged)[0].encode()])

    def _load(self) -> dict[str, list[Any]]:
        if self._path is None:
            return {}
        try:
            return read_sealed(self._path, "it is put aside, and the files are read again")[0]
        except DamagedFileError as error:
            if error.problem != MISSING:
                _logger.warning("%s", error)
                with contextlib.suppress(OutputError):  # whoever saves it reports what cannot be written
                    put_aside(self._path)
            return {}
