"""The answers that the gateway's handlers return, and how they are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

Headers = list[tuple[str, str]]


class Exchange(Protocol):
    """A request's body and the means to answer it: Granian's RSGI protocol object.

    The body can be iterated over once. It ends without an error even if the client hung up halfway.
    """

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the chunks of the body."""

    async def client_disconnect(self) -> None:
        """Wait until the client hangs up."""

    def response_empty(self, status: int, headers: Headers) -> None:
        """Answer without a body."""

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer with a body."""

    def response_file_range(self, status: int, headers: Headers, file: str, start: int, end: int) -> None:
        """Answer with the bytes of a file from ``start`` up to but excluding ``end``."""


@dataclass(frozen=True)
class FileRange:
    """Bytes ``start`` to ``end`` (excluded) of a file; Granian sends them without passing them through Python."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """An answer to a request; ``content`` is its body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | FileRange = b""

    def send(self, exchange: Exchange) -> None:
        """Send this answer."""
        headers = list(self.headers.items())
        content = self.content
        if isinstance(content, FileRange):
            headers.append(("content-length", str(content.end - content.start)))
            exchange.response_file_range(self.status, headers, str(content.path), content.start, content.end)
        elif content:
            exchange.response_bytes(self.status, headers, content)
        else:
            exchange.response_empty(self.status, headers)
