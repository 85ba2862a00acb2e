"""RLE frames without what is before, between and behind their runs."""

from __future__ import annotations

import struct
from itertools import pairwise

_HEADER = struct.Struct("<16I")
_NOTHING = 128


def bare_rle(frame: bytes, planes: int, pixels: int) -> bytes:
    """Return a frame that holds its runs up to the last pixel, and a header of its own.

    Parameters
    ----------
    frame
        The frame.
    planes
        Bytes of a pixel, each with a segment.
    pixels
        Of a plane.

    Raises
    ------
    ValueError, IndexError, struct.error
        It is no RLE frame, has another number of segments, or fewer pixels.
    """
    count, *offsets = _HEADER.unpack_from(frame)
    if count != planes:
        raise ValueError("another number of segments")
    segments = [_runs(frame[start:end], pixels) for start, end in pairwise([*offsets[:count], len(frame)])]
    starts, start = [], _HEADER.size
    for segment in segments:
        starts.append(start)
        start += len(segment)
    return _HEADER.pack(count, *starts, *[0] * (15 - count)) + b"".join(segments)


def _runs(segment: bytes, pixels: int) -> bytes:
    """Return the runs of so many pixels; the last one is shortened if it is longer."""
    position, missing = 0, pixels
    while missing > 0:
        control = segment[position]
        is_literal = control < _NOTHING
        number = 0 if control == _NOTHING else control + 1 if is_literal else 257 - control
        start, position = position, position + 1 + (number if is_literal else min(number, 1))
        missing -= number
    if position > len(segment):
        raise ValueError("cut off")
    found = segment[:position]
    if missing < 0:
        values = segment[start + 1 : position] if is_literal else segment[start + 1 : position] * number
        found = segment[:start] + bytes((number + missing - 1,)) + values[: number + missing]
    return found + b"\0" * (len(found) % 2)
