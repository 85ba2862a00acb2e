"""The parts of an answer of type ``multipart/related`` (RFC 2046), as they come."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_BOUNDARY = re.compile(
    r'multipart/related\s*;(?:.*;)?\s*boundary=(?:"([ !#-~]{1,70})"|([^\s";,]{1,70}))\s*(?:;.*)?', re.IGNORECASE
)
_LONGEST_HEAD = 2**16
"""Bytes of a part's headers, and of what stands before the first part."""


class MultipartError(ValueError):
    """An answer is not divided into parts as it should be."""


def boundary_of(content_type: str) -> bytes:
    """Return what stands between the parts.

    Raises
    ------
    MultipartError
        The content is of another type.
    """
    found = _BOUNDARY.fullmatch(content_type)
    if found is None or not content_type.isascii():
        raise MultipartError("is of another type than multipart/related")
    return (found[1] or found[2]).encode()


def read_parts(pieces: Iterable[bytes], boundary: bytes, most_bytes: int) -> Iterator[Iterator[bytes]]:
    """Read parts, without their headers.

    Parameters
    ----------
    pieces
        The answer.
    boundary
        From ``boundary_of``.
    most_bytes
        Of a part.

    Yields
    ------
    Iterator[bytes]
        The content of a part, to be read to its end before the next part is.

    Raises
    ------
    MultipartError
        A part is larger, its headers are too long, or the answer ends within it.
    """
    reader = _Reader(pieces)
    delimiter = b"\r\n--" + boundary
    reader.skip(delimiter)
    while not reader.begins_with(b"--"):
        reader.skip(b"\r\n\r\n")
        yield reader.until(delimiter, most_bytes)


class _Reader:
    """Reads up to marks."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b"\r\n"  # the first delimiter may stand at the very beginning

    def begins_with(self, mark: bytes) -> bool:
        """Return whether a mark is next, and leave it."""
        while len(self._rest) < len(mark):
            self._rest += self._more()
        return self._rest.startswith(mark)

    def skip(self, mark: bytes) -> None:
        """Read until after a mark."""
        for _ in self.until(mark, _LONGEST_HEAD):
            pass

    def until(self, mark: bytes, most_bytes: int) -> Iterator[bytes]:
        """Yield what comes before a mark, and read until after it."""
        left = most_bytes
        while (at := self._rest.find(mark)) < 0:
            known = max(0, len(self._rest) - len(mark) + 1)
            left -= known
            if left < 0:
                raise MultipartError(f"has a part or headers of more than {most_bytes:,} bytes")
            yield self._rest[:known]
            self._rest = self._rest[known:] + self._more()
        before, self._rest = self._rest[:at], self._rest[at + len(mark) :]
        yield before

    def _more(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise MultipartError("ends within a part")
