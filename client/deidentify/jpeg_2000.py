"""JPEG 2000 codestreams without the segments that hold text."""

from __future__ import annotations

import struct

_START, _SIZE, _TILE, _DATA, _END = b"\xff\x4f", b"\xff\x51", b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_NEEDED = frozenset({0x50, 0x51, 0x52, 0x53, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61})
"""Capabilities, size, coding, quantisation, regions, orders of packets, and packed packet headers."""
_NEEDLESS = frozenset({0x55, 0x57, 0x58, 0x63, 0x64})
"""Lengths of tiles and packets, which would have to be those of the new stream; registration; comments."""
_TILE_PART = struct.Struct(">HHIBB")  # length of the segment; tile; length of the tile part; its number; their number


def bare_jpeg_2000(frame: bytes) -> bytes:
    """Return a codestream from its start to its end, with nothing but what decoding it takes.

    Boxes of a JP2 file around it go too.

    Raises
    ------
    ValueError, struct.error
        It is no JPEG 2000 codestream, or cut off.
    """
    position = frame.index(_START + _SIZE) + len(_START)
    header, position = _segments(frame, position, _TILE)
    kept = [_START, header]
    while (marker := frame[position : position + 2]) != _END:
        if marker != _TILE:
            raise ValueError("no end of codestream")
        length, tile, size, part, parts = _TILE_PART.unpack_from(frame, position + 2)
        header, start = _segments(frame, position + 2 + length, _DATA)
        end = position + size if size else frame.index(_END, start)
        if length != _TILE_PART.size or not start + 2 <= end <= len(frame):
            raise ValueError("cut off")
        body = header + frame[start:end]
        kept += [_TILE, _TILE_PART.pack(length, tile, 2 + length + len(body), part, parts), body]
        position = end
    return b"".join([*kept, _END])


def _segments(frame: bytes, position: int, last: bytes) -> tuple[bytes, int]:
    """Return the segments of a header that are needed, and where the marker behind it is."""
    kept = []
    while (marker := frame[position : position + 2]) != last:
        length = int.from_bytes(frame[position + 2 : position + 4], "big")
        end = position + 2 + length
        if marker[:1] != b"\xff" or marker[1] not in _NEEDED | _NEEDLESS or length < 2 or end > len(frame):
            raise ValueError("no header")
        if marker == _SIZE and length != 38 + 3 * int.from_bytes(frame[position + 38 : position + 40], "big"):
            raise ValueError("a size of another length")
        if marker[1] in _NEEDED:
            kept.append(frame[position:end])
        position = end
    return b"".join(kept), position
