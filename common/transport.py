"""Flat vectors as bytes: whole, halved, or a quarter of the size.

A vector travels in pieces of at most ``PIECE_BYTES``: Flower moves every array as an object of its own, so a few large
arrays are much cheaper than a hundred small ones, and what was already sent need not be sent again. The form of a
piece (``Encoding``) is a closed list; number of pieces, values in each, and bytes follow from it and the vector's size.

* ``float32`` loses nothing.
* ``bfloat16`` keeps the upper half of a float32, rounded to the nearest even: three significant digits.
* ``int8`` gives every block of 64 values one float32 scale and every value a whole number from -127 to 127. An error
  is at most half a step, 1/254 of the largest value of the block.

What a lossy form cuts off is not lost to training: the sender adds it to its next update (``ErrorFeedback``; Seide et
al. 2014, "1-bit stochastic gradient descent", and Karimireddy et al. 2019, arXiv 1901.09847).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError

PIECE_BYTES = 16 * 2**20
BLOCK = 64
# Values that are worked on at a time where it takes several passes: they then stay in the processor's cache.
AT_A_TIME = 2**16
# BLAS takes a thread per core for longer vectors than this; waiting for them takes ten times as long as the work where
# other processes use the cores too.
UNTHREADED = 2**13
Vector = NDArray[np.float32]
Encoding = Literal["float32", "bfloat16", "int8"]
WIRE_TYPES: dict[Encoding, str] = {
    "float32": "fedvox.float32-le",
    "bfloat16": "fedvox.bfloat16-le",
    "int8": f"fedvox.int8-blocks-of-{BLOCK}",
}
VALUES_PER_PIECE: dict[Encoding, int] = {
    "float32": PIECE_BYTES // 4,
    "bfloat16": PIECE_BYTES // 2,
    "int8": PIECE_BYTES // (BLOCK + 4) * BLOCK,
}


@dataclass(frozen=True)
class Piece:
    """``count`` values from ``start`` of the vector, and ``size`` bytes from ``offset`` of its bytes."""

    start: int
    count: int
    offset: int
    size: int


def pieces_of(size: int, encoding: Encoding) -> list[Piece]:
    """All pieces of a vector of ``size`` values, in order."""
    step = VALUES_PER_PIECE[encoding]
    pieces, offset = [], 0
    for start in range(0, size, step):
        count = min(step, size - start)
        pieces.append(Piece(start, count, offset, encoded_bytes(count, encoding)))
        offset += pieces[-1].size
    return pieces


def encoded_bytes(count: int, encoding: Encoding) -> int:
    """Bytes that ``count`` values of one piece take."""
    if encoding == "int8":
        return 4 * _blocks(count) + count
    return count * (4 if encoding == "float32" else 2)


def encode(values: Vector, encoding: Encoding) -> bytes:
    """One piece as bytes, little-endian."""
    if encoding == "float32":
        return values.astype("<f4", copy=False).tobytes()
    if encoding == "bfloat16":
        return _to_bfloat16(values).tobytes()
    scales, steps = _to_int8(values)
    return scales.tobytes() + steps.tobytes()


def decode(data: bytes, count: int, encoding: Encoding) -> Vector:
    """One piece as float32 values, which may be not finite; the array may be read-only.

    Raises:
        ProtocolError: ``data`` has another length than ``count`` values take, or a scale is negative.
    """
    if encoding == "float32" and len(data) == encoded_bytes(count, encoding):
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    values = np.empty(count, np.float32)
    for part, content in decode_parts(data, count, encoding):
        values[part] = content
    return values


def decode_parts(data: bytes, count: int, encoding: Encoding) -> Iterator[tuple[slice, Vector]]:
    """One piece as ``decode`` gives it, in parts of at most ``AT_A_TIME`` values: where they belong, and the values.

    Raises:
        ProtocolError: as ``decode``, before the first part.
    """
    if len(data) != encoded_bytes(count, encoding):
        raise ProtocolError(f"a piece has {len(data)} bytes, {encoded_bytes(count, encoding)} expected")
    if encoding == "float32":
        whole = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
        yield from ((part, whole[part]) for part in _parts(count))
    elif encoding == "bfloat16":
        halves = np.frombuffer(data, "<u2")
        yield from ((part, (halves[part].astype(np.uint32) << 16).view(np.float32)) for part in _parts(count))
    else:
        blocks = _blocks(count)
        scales = np.frombuffer(data, "<f4", blocks)
        if not (scales >= 0).all():
            raise ProtocolError("a piece has a scale that is negative or not a number")
        steps = np.frombuffer(data, np.int8, count, 4 * blocks)
        yield from ((part, _from_int8(scales, steps, part)) for part in _parts(count))


def encode_vector(vector: Vector, encoding: Encoding) -> Iterator[tuple[Piece, bytes]]:
    """The vector's pieces one after another, with their bytes."""
    for piece in pieces_of(vector.size, encoding):
        yield piece, encode(vector[piece.start : piece.start + piece.count], encoding)


def decode_vector(data: Sequence[bytes], size: int, encoding: Encoding) -> Vector:
    """The whole vector from the bytes of all its pieces."""
    vector = np.empty(size, np.float32)
    for piece, content in zip(pieces_of(size, encoding), data, strict=True):
        vector[piece.start : piece.start + piece.count] = decode(content, piece.count, encoding)
    return vector


class ErrorFeedback:
    """What a lossy form cut off a site's updates so far, to be sent with the next one.

    It lives in memory at the site. After a restart it begins at zero: what was cut off last is then lost, which costs
    as much accuracy as one update without feedback, and a run with a lossy upload that was interrupted differs in the
    last digits from one that was not. Nothing is kept for float32.
    """

    def __init__(self) -> None:
        self._residual: Vector | None = None

    def encode(self, update: Vector, encoding: Encoding) -> Iterator[tuple[Piece, bytes]]:
        """The pieces of ``update`` plus what earlier ones lost; keeps what these lose."""
        if encoding == "float32":
            self._residual = None
            yield from encode_vector(update, encoding)
            return
        if self._residual is None or self._residual.shape != update.shape:
            self._residual = np.zeros(update.size, np.float32)
        for piece in pieces_of(update.size, encoding):
            part = slice(piece.start, piece.start + piece.count)
            wanted = update[part] + self._residual[part]
            data = encode(wanted, encoding)
            self._residual[part] = wanted - decode(data, piece.count, encoding)
            yield piece, data


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _to_bfloat16(values: Vector) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = np.empty(bits.size, "<u2")
    for part in _parts(bits.size):
        # Half a unit of the last kept place, a little less where that place is even: ties go to the even neighbour.
        half = (bits[part] >> 16) & 1
        half += 0x7FFF
        half += bits[part]
        half >>= 16
        # The sum would carry a NaN over into an infinity, or around to zero.
        half[np.isnan(values[part])] = 0x7FC0
        rounded[part] = half
    return rounded


def _from_int8(scales: NDArray[np.float32], steps: NDArray[np.int8], part: slice) -> Vector:
    scale = np.repeat(scales[part.start // BLOCK : _blocks(part.stop)], BLOCK)[: part.stop - part.start]
    with np.errstate(over="ignore", invalid="ignore"):
        values: Vector = steps[part] * scale
    return values


def squared_norm(values: Vector) -> float:
    """The sum of squares in float64; not finite if a value is not."""
    total = 0.0
    for start in range(0, values.size, UNTHREADED):
        part = values[start : start + UNTHREADED].astype(np.float64)
        total += float(part @ part)
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
    # Below the smallest normal number a scale has too few digits to divide by: such values count as zero.
    usable = scales >= np.finfo(np.float32).tiny
    scales[~usable] = 0
    steps = np.rint(table / np.where(usable, scales, 1)[:, None])
    steps[~usable] = 0
    return scales, np.clip(steps, -127, 127).astype(np.int8).reshape(-1)[: values.size]
