"""Encodings of flat vectors: full, half or about a quarter of the float32 size.

A file holds the values in little-endian pieces of at most ``PIECE_BYTES``. The encoding and the vector's size determine
the number of pieces and the values and bytes of each.

* ``float32`` is lossless.
* ``bfloat16`` keeps the upper half of a float32, rounded to nearest even: 8 significant bits.
* ``int8`` stores one float32 scale per block of 64 values and every value as an integer from -127 to 127. The error is
  at most half a step: 1/254 of the largest magnitude in the block.

The error of a lossy encoding is not lost to training: the sender adds it to its next update (``ErrorFeedback``; Seide
et al. 2014, "1-bit stochastic gradient descent", and Karimireddy et al. 2019, arXiv 1901.09847).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.formatting import counted

PIECE_BYTES = 4 * 2**20
BLOCK = 64
# Values (whole blocks) processed at a time by multi-pass operations, so that they stay in the cache.
AT_A_TIME = 2**16
# Values per window: larger windows amortise read calls.
WINDOW = 2**17
# BLAS uses one thread per core for vectors longer than this; on loaded machines, waiting for those threads takes ten
# times as long as the computation.
UNTHREADED = 2**13
# A sum of float32 squares below this may have lost terms to underflow (the smallest float32 is about 1e-45).
SMALLEST_SQUARES = 1e-30
Vector = NDArray[np.float32]
Encoding = Literal["float32", "bfloat16", "int8"]
VALUES_PER_PIECE: dict[Encoding, int] = {
    "float32": PIECE_BYTES // 4,
    "bfloat16": PIECE_BYTES // 2,
    "int8": PIECE_BYTES // (BLOCK + 4) * BLOCK,
}


@dataclass(frozen=True)
class Piece:
    """``count`` values of the vector from ``start``, stored in ``size`` bytes from ``offset``."""

    start: int
    count: int
    offset: int
    size: int


def pieces_of(size: int, encoding: Encoding) -> list[Piece]:
    """Return all pieces of a vector of ``size`` values, in order."""
    step = VALUES_PER_PIECE[encoding]
    pieces, offset = [], 0
    for start in range(0, size, step):
        count = min(step, size - start)
        pieces.append(Piece(start, count, offset, encoded_bytes(count, encoding)))
        offset += pieces[-1].size
    return pieces


def encoded_bytes(count: int, encoding: Encoding) -> int:
    """Return the size in bytes of ``count`` values of one piece."""
    if encoding == "int8":
        return 4 * _blocks(count) + count
    return count * (4 if encoding == "float32" else 2)


def encode(values: Vector, encoding: Encoding) -> NDArray[np.uint8]:
    """Encode one piece, little-endian; float32 returns a view of ``values`` if their memory layout allows."""
    if encoding == "float32":
        return np.ascontiguousarray(values, "<f4").view(np.uint8)

    def fill(data: NDArray[np.uint8]) -> None:
        for part in _parts(values.size):
            _write(data, values[part], part, values.size, encoding)

    return _filled(encoded_bytes(values.size, encoding), fill)


def decode(data: bytes | NDArray[np.uint8], count: int, encoding: Encoding) -> Vector:
    """Decode one piece to float32; values may be NaN or infinite, and the array may be read-only.

    Raises
    ------
    ProtocolError
        If the length of ``data`` does not match ``count``, or a scale is negative or NaN.
    """
    if encoding == "float32" and len(data) == encoded_bytes(count, encoding):
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    values = np.empty(count, np.float32)
    for part, content in decode_parts(data, count, encoding):
        values[part] = content
    return values


def decode_parts(data: bytes | NDArray[np.uint8], count: int, encoding: Encoding) -> Iterator[tuple[slice, Vector]]:
    """Decode one piece in parts of at most ``AT_A_TIME`` values; yield each part's place in the piece and its values.

    Raises
    ------
    ProtocolError
        As for ``decode``, before the first part.
    """
    if len(data) != encoded_bytes(count, encoding):
        raise ProtocolError(f"a piece has {counted(len(data), 'byte')}, {encoded_bytes(count, encoding)} expected")
    content = np.frombuffer(data, np.uint8)
    if encoding == "int8" and not (content[: 4 * _blocks(count)].view("<f4") >= 0).all():
        raise ProtocolError("a piece has a scale that is negative or NaN")
    yield from ((part, _read(content, part, count, encoding)) for part in _parts(count))


def windows_of(piece: Piece, encoding: Encoding) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Split a piece into windows that can be read independently; yield each window's place in the vector and its bytes.

    The bytes are one or two ranges (offset in the vector's bytes, size). Concatenated, they are what ``encode`` returns
    for these values.
    """
    for start in range(0, piece.count, WINDOW):
        part = slice(start, min(start + WINDOW, piece.count))
        count = part.stop - part.start
        if encoding == "int8":
            scales = (piece.offset + 4 * (part.start // BLOCK), 4 * _blocks(count))
            stretches = [scales, (piece.offset + 4 * _blocks(piece.count) + part.start, count)]
        else:
            width = encoded_bytes(1, encoding)
            stretches = [(piece.offset + width * part.start, width * count)]
        yield slice(piece.start + part.start, piece.start + part.stop), stretches


def encode_vector(vector: Vector, encoding: Encoding) -> Iterator[tuple[Piece, NDArray[np.uint8]]]:
    """Yield the vector's pieces in order, with their bytes."""
    for piece in pieces_of(vector.size, encoding):
        yield piece, encode(vector[piece.start : piece.start + piece.count], encoding)


def vector_bytes(size: int, encoding: Encoding) -> int:
    """Return the size in bytes of an encoded vector of ``size`` values."""
    return sum(piece.size for piece in pieces_of(size, encoding))


def vector_of(content: NDArray[np.uint8], size: int, encoding: Encoding) -> Vector:
    """Decode a whole vector; float32 returns a view of ``content``, which may be read-only.

    Raises
    ------
    ProtocolError
        If the length of ``content`` does not match ``size``, or a scale is negative or NaN.
    """
    if content.size != vector_bytes(size, encoding):
        raise ProtocolError(f"weights have {counted(content.size, 'byte')}, {vector_bytes(size, encoding)} expected")
    if encoding == "float32":
        return content.view("<f4").astype(np.float32, copy=False)
    vector = np.empty(size, np.float32)
    for piece in pieces_of(size, encoding):
        whole = vector[piece.start : piece.start + piece.count]
        for part, values in decode_parts(content[piece.offset : piece.offset + piece.size], piece.count, encoding):
            whole[part] = values
    return vector


def vectors_of(content: NDArray[np.uint8], size: int, encoding: Encoding, count: int) -> list[Vector]:
    """Decode ``count`` vectors that were encoded one after another.

    Raises
    ------
    ProtocolError
        As for ``vector_of``.
    """
    one = vector_bytes(size, encoding)
    if content.size != count * one:
        raise ProtocolError(f"weights have {counted(content.size, 'byte')}, {count * one} expected")
    return [vector_of(content[start : start + one], size, encoding) for start in range(0, content.size, one)]


def read_window(
    content: NDArray[np.uint8], stretches: Sequence[tuple[int, int]], count: int, encoding: Encoding
) -> Vector:
    """Decode one window of ``windows_of``.

    Raises
    ------
    ProtocolError
        If a scale is negative or NaN.
    """
    parts = [content[offset : offset + size] for offset, size in stretches]
    return decode(parts[0] if len(parts) == 1 else np.concatenate(parts), count, encoding)


class ErrorFeedback:
    """Error feedback: adds the encoding error of a site's last update to the next one.

    The residual is held in memory at the site and starts at zero after a restart. A restart therefore loses one
    residual, which costs as much accuracy as one update without feedback, and makes a run with a lossy upload differ in
    the last digits from an uninterrupted run. float32 needs no residual.
    """

    def __init__(self) -> None:
        self._residual: Vector | None = None

    def encode(self, update: Vector, encoding: Encoding) -> Iterator[tuple[Piece, NDArray[np.uint8]]]:
        """Encode ``update`` plus the residual, piece by piece, and keep the new residual."""
        if encoding == "float32":
            self._residual = None
            yield from encode_vector(update, encoding)
            return
        if self._residual is None or self._residual.shape != update.shape:
            self._residual = np.zeros(update.size, np.float32)
        for piece in pieces_of(update.size, encoding):
            where = slice(piece.start, piece.start + piece.count)
            yield piece, self._encode_piece(self._residual[where], update[where], piece, encoding)

    def _encode_piece(self, residual: Vector, new: Vector, piece: Piece, encoding: Encoding) -> NDArray[np.uint8]:
        def fill(data: NDArray[np.uint8]) -> None:
            # Part by part, so that each part is added, encoded and decoded while it is in the processor's cache.
            for part in _parts(piece.count):
                residual[part] += new[part]
                _write(data, residual[part], part, piece.count, encoding)
                residual[part] -= _read(data, part, piece.count, encoding)

        return _filled(piece.size, fill)


def _filled(size: int, fill: Callable[[NDArray[np.uint8]], None]) -> NDArray[np.uint8]:
    content = np.empty(size, np.uint8)
    fill(content)
    return content


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _write(data: NDArray[np.uint8], values: Vector, part: slice, count: int, encoding: Encoding) -> None:
    """Encode a part of a lossy piece in place; ``count`` and ``data`` are those of the whole piece."""
    if encoding == "bfloat16":
        data.view("<u2")[part] = _to_bfloat16(values)
        return
    blocks = _blocks(count)
    scales = data[: 4 * blocks].view("<f4")
    steps = data[4 * blocks :].view(np.int8)
    scales[part.start // BLOCK : _blocks(part.stop)], steps[part] = _to_int8(values)


def _read(data: NDArray[np.uint8], part: slice, count: int, encoding: Encoding) -> Vector:
    """Decode a part of a piece; ``count`` and ``data`` are those of the whole piece."""
    if encoding == "float32":
        values: Vector = data.view("<f4")[part].astype(np.float32, copy=False)
    elif encoding == "bfloat16":
        values = np.left_shift(data.view("<u2")[part], 16, dtype=np.uint32).view(np.float32)
    else:
        blocks = _blocks(count)
        scales = data[: 4 * blocks].view("<f4")[part.start // BLOCK : _blocks(part.stop)]
        with np.errstate(over="ignore", invalid="ignore"):
            values = data[4 * blocks :].view(np.int8)[part] * np.repeat(scales, BLOCK)[: part.stop - part.start]
    return values


def _to_bfloat16(values: Vector) -> NDArray[np.uint32]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Add half a unit of the last kept bit, minus one if that bit is even: ties round to even.
    rounded: NDArray[np.uint32] = np.right_shift(bits, 16, dtype=np.uint32)
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    not_numbers = np.isnan(values)
    if not_numbers.any():
        # The addition could turn a NaN into an infinity or wrap around to zero.
        rounded[not_numbers] = 0x7FC0
    return rounded


def squared_norm(values: Vector) -> float:
    """Return the sum of squares to at least four digits; it is finite if and only if all values are."""
    total = 0.0
    for start in range(0, values.size, UNTHREADED):
        part = values[start : start + UNTHREADED]
        with np.errstate(over="ignore", invalid="ignore"):
            squares = float(part @ part)
        if not SMALLEST_SQUARES < squares < math.inf:
            exact = part.astype(np.float64)
            squares = float(exact @ exact)
        total += squares
    return total


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, AT_A_TIME):
        yield slice(start, min(start + AT_A_TIME, size))


def _to_int8(values: Vector) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    blocks = _blocks(values.size)
    padded = np.zeros(blocks * BLOCK, np.float32)
    padded[: values.size] = values
    table = padded.reshape(blocks, BLOCK)
    scales = (np.abs(table).max(axis=1, initial=0) / np.float32(127)).astype("<f4")
    # A subnormal scale is too imprecise to divide by: such blocks are encoded as zero.
    usable = scales >= np.finfo(np.float32).tiny
    scales[~usable] = 0
    steps = np.rint(table / np.where(usable, scales, 1)[:, None])
    steps[~usable] = 0
    return scales, np.clip(steps, -127, 127).astype(np.int8).reshape(-1)[: values.size]
