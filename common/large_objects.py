"""Flower's two messages that carry a piece of a model, as bytes and back without copying the piece.

protobuf copies what is put into a message, copies it some five times more while it writes the message down (its buffer
grows as it goes), and copies it again for whoever asks for it: 30 ms of CPU time for a piece of 16 MiB, at each of four
programs that it goes through on its way. Here a large piece stays beside the message, and only its first bytes are
protobuf's work. On the wire nothing changes. Whatever is small, or not in the form in which Flower writes it, is left
to protobuf. Written for exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from google.protobuf.message import Message  # type: ignore[import-untyped]

Buffer = bytes | memoryview
LARGE = 65536
MOST_FIELDS = 16
"""Of a message that is read here: the two have three and five, each once."""


class PushedObject(Message):  # type: ignore[misc]
    """A ``PushObjectRequest``.

    Args:
        head: its other fields.
        content: the object, of which the parts belong together.
    """

    def __init__(self, head: PushObjectRequest, *content: Buffer) -> None:
        self._head = head
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    @property
    def object_content(self) -> bytes:
        """The object as one."""
        if len(self._content) != 1 or not isinstance(self._content[0], bytes):
            self._content = (b"".join(self._content),)
        [content] = self._content
        return bytes(content)

    def SerializeToString(self, **_: Any) -> Frames:  # noqa: N802 -- protobuf's name
        """What a client of Flower's sends."""
        return Frames([self._head.SerializeToString(), *_field(PushObjectRequest, self._content)])


class PulledObject(Message):  # type: ignore[misc]
    """A ``PullObjectResponse``."""

    def __init__(
        self, object_found: bool = False, object_available: bool = False, object_content: bytes | None = None
    ) -> None:
        self.object_found = object_found
        self.object_available = object_available
        self.object_content = object_content or b""

    def frames(self) -> list[Buffer]:
        """The message as bytes, in parts."""
        head = PullObjectResponse(object_found=self.object_found, object_available=self.object_available)
        return [head.SerializeToString(), *_field(PullObjectResponse, [self.object_content])]

    def SerializeToString(self, **_: Any) -> bytes:  # noqa: N802
        """The message as bytes."""
        return b"".join(self.frames())

    def ParseFromString(self, data: bytes) -> int:  # noqa: N802
        """Takes the fields over; the number of bytes read.

        Raises:
            DecodeError: ``data`` is not such a message.
        """
        head, content = PullObjectResponse(), _split(PullObjectResponse, data)
        head.ParseFromString(data if content is None else content[0])
        self.object_found, self.object_available = head.object_found, head.object_available
        self.object_content = head.object_content if content is None else content[1]
        return len(data)


class Frames:
    """Bytes in parts, for httpx, which takes it for an open file: its length is known, and nothing is put together."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._position = 0

    def __iter__(self) -> Iterator[Buffer]:
        return iter(self._parts)

    def tell(self) -> int:
        """Where it stands, which matters to nobody."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Stands elsewhere, from the beginning or the end."""
        self._position = offset + (sum(map(len, self._parts)) if whence == os.SEEK_END else 0)
        return self._position


def frames_of(message: Message) -> list[Buffer]:
    """A message as bytes, in parts that are not put together."""
    return message.frames() if isinstance(message, PulledObject) else [message.SerializeToString()]


def read_message(kind: type[Message], data: bytes) -> Message:
    """A message of this kind from its bytes; a ``PushedObject`` for a request with a large piece.

    Raises:
        DecodeError: ``data`` is no such message.
    """
    content = _split(kind, data) if kind is PushObjectRequest else None
    message = kind()
    message.ParseFromString(data if content is None else content[0])
    return message if content is None else PushedObject(message, content[1])


def leave_pieces_beside(module: ModuleType) -> None:
    """Lets a module of Flower make these messages without copying large pieces into them.

    Args:
        module: one that has imported ``PushObjectRequest`` or ``PullObjectResponse``.
    """
    if hasattr(module, "PushObjectRequest"):
        module.PushObjectRequest = _push_request  # type: ignore[attr-defined]
    if hasattr(module, "PullObjectResponse"):
        module.PullObjectResponse = _pull_response  # type: ignore[attr-defined]


def _push_request(object_content: bytes = b"", **fields: Any) -> Message:
    if len(object_content) < LARGE:
        return PushObjectRequest(object_content=object_content, **fields)
    return PushedObject(PushObjectRequest(**fields), object_content)


def _pull_response(object_content: bytes = b"", **fields: Any) -> Message:
    if len(object_content) < LARGE:
        return PullObjectResponse(object_content=object_content, **fields)
    return PulledObject(object_content=object_content, **fields)


def _field(kind: type[Message], content: Sequence[Buffer]) -> list[Buffer]:
    """The field of the piece: its key, its length, and it."""
    size = sum(map(len, content))
    if not size:
        return []
    start = bytearray([kind.DESCRIPTOR.fields_by_name["object_content"].number << 3 | 2])
    while size >= 0x80:
        start.append(size & 0x7F | 0x80)
        size >>= 7
    return [bytes(start + bytes([size])), *content]


def _split(kind: type[Message], data: bytes) -> tuple[bytes, bytes] | None:
    """The other fields of a message, and its piece; None leaves it to protobuf, which knows all forms."""
    if len(data) < LARGE:
        return None
    wanted = kind.DESCRIPTOR.fields_by_name["object_content"].number
    at, found = 0, None
    for _ in range(MOST_FIELDS):
        if at == len(data):
            break
        start, key = at, data[at]
        number, wire_type = key >> 3, key & 7
        if key >= 0x80 or wire_type not in (0, 2):
            return None
        value, at = _varint(data, at + 1)
        if wire_type == 2:
            start_of_value, at = at, at + value
            if number == wanted:
                if found is not None:
                    return None
                found = start, start_of_value, at
        if not start < at <= len(data):
            return None
    if found is None or at != len(data):
        return None
    start, start_of_value, end = found
    return data[:start] + data[end:], data[start_of_value:end]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends; past the end of ``data`` if it does not end."""
    value = 0
    for place in range(10):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(data) + 1
