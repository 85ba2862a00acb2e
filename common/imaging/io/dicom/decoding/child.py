"""The process in which frames are decoded: one request after another from standard input, until that is closed.

A request is a line of JSON with the transfer syntax, the options of the frame and its length, then the frame. The reply
is the type of the values (``REPLY``) and their number of bytes, then these; or ``FAILED`` and the name of an error.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import BinaryIO

REPLY = struct.Struct("<3sI")
FAILED = b"err"
_ROOM, _ROOM_PER_PIXEL = 2**30, 32
"""Bytes of memory that decoding may take beside what the process has at its start."""
_LONGEST_SECONDS = 60
"""Of processor time for one frame."""


def main() -> None:
    """Decode until there is no further request."""
    replies = os.fdopen(os.dup(1), "wb")
    # Decoders print to where replies go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        _answer(sys.stdin.buffer.read(request["length"]), request["syntax"], request["options"], replies)


def _answer(frame: bytes, syntax: str, options: dict[str, int], replies: BinaryIO) -> None:
    from common.imaging.io.dicom.decoding.frame import decode_frame

    _limit(options["rows"] * options["columns"])
    try:
        values = decode_frame(frame, syntax, options)
        kind, content = values.dtype.str.encode(), values.tobytes()
    except Exception as error:  # whatever decoders raise is told, and whatever they do beside that ends this process
        kind, content = FAILED, type(error).__name__.encode()
    replies.write(REPLY.pack(kind, len(content)))
    replies.write(content)
    replies.flush()


def _limit(pixels: int) -> None:
    """Bound memory and time for one frame: a stream that wants more ends this process, and not the machine."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _bound(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + _LONGEST_SECONDS)
    _bound(resource.RLIMIT_CORE, 0)
    statm = Path("/proc/self/statm")
    if statm.exists():
        size = int(statm.read_text().split()[0]) * resource.getpagesize()
        _bound(resource.RLIMIT_AS, size + _ROOM + _ROOM_PER_PIXEL * pixels)


def _bound(what: int, wanted: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    main()
