"""The part of the safetensors format needed to write weights without copying them into memory.

A file consists of the header's length (8 bytes, little-endian), the header (JSON: names, types, shapes and offsets),
and the values of all tensors in order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST_HEADER_BYTES = 16 * 2**20


def float32_header(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes that precede the values of float32 tensors stored in the order of ``shapes``.

    Parameters
    ----------
    shapes
        Name -> shape.
    metadata
        Text entries for the header.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name, shape in shapes.items():
        end = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the tensors' names and shapes, in order, from a file with a ``float32_header``.

    Raises
    ------
    ValueError
        If the header is malformed.
    OSError
        If the file cannot be read.
    """
    with file.open("rb") as stream:
        text = stream.read(min(int.from_bytes(stream.read(8), "little"), LARGEST_HEADER_BYTES))
    try:
        header = json.loads(text)
        return {name: tuple(map(int, about["shape"])) for name, about in header.items() if name != "__metadata__"}
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a safetensors header: {error}") from None
