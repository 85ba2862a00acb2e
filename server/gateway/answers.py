"""What the gateway's handlers return, and how it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

Headers = list[tuple[str, str]]


class Exchange(Protocol):
    """A request's body and the way to its answer, as Granian gives them to an application (RSGI).

    The body can be iterated over once. It ends without an error also where the client hung up before all of it came.
    """

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The portions of the body."""

    async def client_disconnect(self) -> None:
        """Returns when the client has hung up."""

    def response_empty(self, status: int, headers: Headers) -> None:
        """Answers without a body."""

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        """Answers with a body."""

    def response_file_range(self, status: int, headers: Headers, file: str, start: int, end: int) -> None:
        """Answers with bytes of a file; ``end`` is not among them."""


@dataclass(frozen=True)
class FileRange:
    """Bytes ``start`` to ``end`` (excluded) of a file; they are sent without ever being in Python's hands."""

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
        """Answers the request."""
        headers = list(self.headers.items())
        content = self.content
        if isinstance(content, FileRange):
            headers.append(("content-length", str(content.end - content.start)))
            exchange.response_file_range(self.status, headers, str(content.path), content.start, content.end)
        elif content:
            exchange.response_bytes(self.status, headers, content)
        else:
            exchange.response_empty(self.status, headers)
