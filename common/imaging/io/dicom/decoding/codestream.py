"""What the header of a compressed frame says about its size; decoders take memory for what stands there."""

from __future__ import annotations

import struct
from typing import NamedTuple

from common.imaging.io.dicom.slices import PixelForm, RefusedError

_JPEG = "1.2.840.10008.1.2.4."
_JPEG_FAMILY = frozenset(f"{_JPEG}{number}" for number in (50, 57, 70, 80, 81))
_JPEG_2000 = frozenset(f"{_JPEG}{number}" for number in (90, 91))
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}) | {0xF7}
"""Markers of a frame header; the last one is that of JPEG-LS."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAME = struct.Struct(">BHHB")
_START_OF_CODESTREAM, _SIZE_MARKER = b"\xff\x4f", b"\xff\x51"
_SIZE = struct.Struct(">8I H B B B")  # image, its offset, tile, its offset; components; bits and steps of the first


class StreamSize(NamedTuple):
    """Size of a compressed frame.

    Attributes
    ----------
    columns, rows
        In pixels.
    components
        Values of a pixel.
    bits
        Of a value.
    """

    columns: int
    rows: int
    components: int
    bits: int


def require_same_size(frame: bytes, form: PixelForm) -> None:
    """Compare a frame with what its file promised, before anything is decoded.

    Raises
    ------
    RefusedError
        It has another size, several components, more bits than there is room for, or no header.
    """
    size = stream_size(frame, form.syntax)
    if size is None:
        return
    if (size.columns, size.rows) != (form.columns, form.rows):
        found, wanted = f"{size.columns:,} x {size.rows:,}", f"{form.columns:,} x {form.rows:,}"
        raise RefusedError(f"holds pixels of another size than its header says: {found}, not {wanted}")
    if size.components != 1 or size.bits > form.bits_allocated:
        found = f"{size.components:,} values of {size.bits} bits"
        raise RefusedError(f"holds other pixels than its header says: {found}, not 1 of {form.bits_allocated}")


def stream_size(frame: bytes, syntax: str) -> StreamSize | None:
    """Read the size from a frame's own header; None if its transfer syntax has none.

    Raises
    ------
    RefusedError
        The header is damaged.
    """
    try:
        if syntax in _JPEG_FAMILY:
            return _jpeg_size(frame)
        if syntax in _JPEG_2000:
            return _jpeg_2000_size(frame)
    except (struct.error, IndexError, ValueError):
        raise RefusedError("is damaged: its pixel data has no header that can be read. Copy it again") from None
    return None


def _jpeg_size(frame: bytes) -> StreamSize:
    """Read the first frame header; segments before it are skipped."""
    if frame[:2] != bytes((0xFF, _START_OF_IMAGE)):
        raise ValueError
    position = 2
    while True:
        if frame[position] != 0xFF:
            raise ValueError
        while frame[position] == 0xFF:
            position += 1
        marker = frame[position]
        position += 1
        if marker in (_END_OF_IMAGE, _START_OF_SCAN):
            raise ValueError
        if marker in _WITHOUT_LENGTH:
            continue
        if marker in _FRAMES:
            bits, rows, columns, components = _FRAME.unpack_from(frame, position + 2)
            return StreamSize(columns, rows, components, bits)
        position += int.from_bytes(frame[position : position + 2], "big")


def _jpeg_2000_size(frame: bytes) -> StreamSize:
    """Read the size marker, which is the first one; some programs put the boxes of a JP2 file before it."""
    start = frame.index(_START_OF_CODESTREAM + _SIZE_MARKER)
    right, bottom, left, top, *_, components, bits, across, down = _SIZE.unpack_from(frame, start + 8)
    if across != 1 or down != 1 or left >= right or top >= bottom:
        raise ValueError
    return StreamSize(right - left, bottom - top, components, (bits & 0x7F) + 1)
