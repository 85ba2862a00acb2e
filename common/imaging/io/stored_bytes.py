"""The bytes of an image file: of a compressed one, never more than its header promises."""

from __future__ import annotations

import mmap
import stat
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 31  # zlib's window size for gzip, which also verifies the checksum
_DEFLATE_RATIO = 1032
"""Deflate cannot compress better than this."""
_SPARE_BYTES = 2**20
"""Bytes after the promised ones that are tolerated, as some programs pad their files."""
_PIECE_BYTES = 2**18
_MOST_EMPTY_MEMBERS = 1000


class StoredFile:
    """An image file, plain or compressed with gzip, whatever its name.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    DataError
        If it does not exist, is empty or is no regular file, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Looked at before it is opened: opening a pipe would wait for a writer for ever.
            if not stat.S_ISREG(path.stat().st_mode):
                what = "a folder" if path.is_dir() else "a pipe or a device"
                raise DataError(path, f"cannot be read: it is {what}, not a file")
            with path.open("rb") as file:
                start = file.read(2)
                self.is_compressed = start == _GZIP_MAGIC
                if not start:
                    raise DataError(path, "is empty. Copy it again")
                if self.is_compressed:
                    self._raw: bytes | mmap.mmap = start + file.read()
                else:
                    self._raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise DataError(path, "does not exist") from error
        except (OSError, ValueError) as error:
            raise DataError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error

    def start(self, size: int) -> bytes:
        """Return the first bytes, fewer if the file is shorter.

        Raises
        ------
        DataError
            If the compressed content is damaged.
        """
        if isinstance(self._raw, mmap.mmap):
            return self._raw[:size]
        content = np.empty(size, dtype=np.uint8)
        return content[: min(size, self._unpack(self._raw, content.data))].tobytes()

    def most_bytes(self) -> int:
        """Return an upper bound of the content's size."""
        return len(self._raw) * (_DEFLATE_RATIO if self.is_compressed else 1)

    def content(self, promised: int) -> NDArray[np.uint8] | mmap.mmap:
        """Return the content, of which a compressed file may hold little more than ``promised`` bytes.

        Raises
        ------
        DataError
            If the compressed content is damaged, truncated or far larger than promised.
        """
        if isinstance(self._raw, mmap.mmap):
            return self._raw
        # Not written before the data is there, so a promise that is not kept takes no memory.
        content = np.empty(min(promised, self.most_bytes()) + _SPARE_BYTES, dtype=np.uint8)
        size = self._unpack(self._raw, content.data)
        if size > len(content):
            text = f"unpacks to far more than the {promised:,} bytes that its header promises"
            raise DataError(self.path, f"{text}: it is damaged, or made to fill the memory. Copy it again")
        return content[:size]

    def _unpack(self, raw: bytes, target: memoryview) -> int:
        """Unpack all members of the file and return their size, or one more than ``target`` holds, which then is full.

        A file that fits is verified to its end.
        """
        size, position, empty = 0, 0, 0
        while position < len(raw) and size <= len(target):
            before = size
            size, position = self._unpack_member(raw, position, target, size)
            while raw[position : position + 1] == b"\0":  # gzip files may be padded
                position += 1
            empty += size == before
            if empty > _MOST_EMPTY_MEMBERS:
                raise self._damaged("it has thousands of empty parts")
        return size

    def _unpack_member(self, raw: bytes, position: int, target: memoryview, size: int) -> tuple[int, int]:
        """Append one member to the ``size`` bytes in ``target``; return the new size and the position after it."""
        member = zlib.decompressobj(_GZIP)
        while not member.eof:
            piece = raw[position : position + _PIECE_BYTES]
            position += len(piece)
            if not piece:
                raise self._damaged("it ends before its end-of-stream marker")
            while piece and not member.eof:
                try:
                    values = member.decompress(piece, len(target) - size + 1)
                except zlib.error as error:
                    raise self._damaged(str(error)) from error
                if size + len(values) > len(target):
                    target[size:] = values[: len(target) - size]
                    return len(target) + 1, position
                target[size : size + len(values)] = values
                size += len(values)
                piece = member.unconsumed_tail
        return size, position - len(member.unused_data)

    def _damaged(self, reason: str) -> DataError:
        return DataError(self.path, f"is a truncated or damaged gzip file ({reason}). Copy it again")
