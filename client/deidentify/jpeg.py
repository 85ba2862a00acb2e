"""JPEG and JPEG-LS streams without the segments that hold text."""

from __future__ import annotations

import re

_START, _END, _SCAN, _QUANTIZATION, _HUFFMAN, _PRESETS = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xF8
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}) | {0xF7}
"""Headers of a frame; the last one is that of JPEG-LS."""
_FIXED = {0xDC: range(4, 5), 0xDD: range(4, 7), _PRESETS: range(13, 14), 0xCC: range(4, 36)}
"""Lengths of segments with numbers alone: lines, restart interval, parameters of JPEG-LS, arithmetic coding."""
_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
_JFIF = b"\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ADOBE = b"\0\x0eAdobe\0\x64\0\0\0\0"
_HP = b"\0\x07mrfx"
_MOST_TRANSFORM = 5
_NEXT_MARKER = re.compile(rb"\xff(?=[\x01-\xcf\xd8-\xfe])")
_NEXT_MARKER_LS = re.compile(rb"\xff(?=[\x80-\xcf\xd8-\xfe])")


def bare_jpeg(frame: bytes) -> bytes:
    """Return a stream from its start to its end of image, with nothing but what decoding it takes.

    Comments and application segments go; those from which decoders learn the kind of colour are written anew.

    Raises
    ------
    ValueError, IndexError
        It is no JPEG or JPEG-LS stream, or cut off.
    """
    if frame[:2] != bytes((0xFF, _START)):
        raise ValueError("no start of image")
    kept, position, next_marker = [frame[:2]], 2, _NEXT_MARKER
    while True:
        marker, position = _marker(frame, position)
        if marker == _END:
            return b"".join([*kept, bytes((0xFF, _END))])
        end = position + int.from_bytes(frame[position : position + 2], "big")
        segment = _needed(marker, frame[position:end])
        if end - position < 2 or end > len(frame):
            raise ValueError("cut off")
        if segment:
            kept.append(bytes((0xFF, marker)) + segment)
        if marker in _FRAMES:
            next_marker = _NEXT_MARKER_LS if marker == max(_FRAMES) else _NEXT_MARKER
        if marker == _SCAN:
            found = next_marker.search(frame, end)
            if found is None:
                raise ValueError("no end of image")
            kept.append(frame[end : found.start()])
            end = found.start()
        position = end


def _marker(frame: bytes, position: int) -> tuple[int, int]:
    """Return a marker and where its segment begins; any number of 0xFF may be before it."""
    if frame[position] != 0xFF:
        raise ValueError("no marker")
    while frame[position] == 0xFF:
        position += 1
    return frame[position], position + 1


def _needed(marker: int, segment: bytes) -> bytes:
    """Return what of a segment, which begins with its length, decoders need."""
    if marker == _COMMENT or marker in _APPLICATION:
        return _colour(marker, segment)
    if marker in _FRAMES:
        is_whole = len(segment) == 8 + 3 * segment[7]
    elif marker == _SCAN:
        is_whole = len(segment) == 6 + 2 * segment[2]
    elif marker in (_QUANTIZATION, _HUFFMAN):
        is_whole = _are_tables(marker, segment)
    else:
        is_whole = len(segment) in _FIXED.get(marker, ())
    if not is_whole or (marker == _PRESETS and segment[2] != 1):
        raise ValueError("a segment of another length or kind")
    return segment


def _are_tables(marker: int, segment: bytes) -> bool:
    position = 2
    while position < len(segment):
        if marker == _QUANTIZATION:
            position += 1 + 64 * (1 + (segment[position] >> 4))
        else:
            position += 17 + sum(segment[position + 1 : position + 17])
    return position == len(segment)


def _colour(marker: int, segment: bytes) -> bytes:
    """Return a segment that tells the kind of colour, without all else that it may hold."""
    if marker == 0xE0 and segment[2:7] == b"JFIF\0":
        return _JFIF
    for known, beginning, at in ((0xEE, _ADOBE, 13), (0xE8, _HP, 6)):
        if marker == known and segment[2:6] == beginning[2:6] and segment[at] <= _MOST_TRANSFORM:
            return beginning + segment[at : at + 1]
    return b""
