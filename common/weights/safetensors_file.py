"""The safetensors format, as far as it takes to write weights without a copy of them in memory.

A file is the length of its header (8 bytes, little-endian), the header (JSON: names, types, shapes and places), and the
values of all tensors one after another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST_HEADER_BYTES = 16 * 2**20


def float32_header(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What comes before the values of float32 tensors that lie in the order of ``shapes``.

    Parameters
    ----------
    shapes
        name -> shape.
    metadata
        texts to keep in the file.
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
    """Name -> shape of the tensors in a file that begins as ``float32_header`` says, in order.

    Raises
    ------
    ValueError
        it does not.
    OSError
        it cannot be read.
    """
    with file.open("rb") as stream:
        text = stream.read(min(int.from_bytes(stream.read(8), "little"), LARGEST_HEADER_BYTES))
    try:
        header = json.loads(text)
        return {name: tuple(map(int, about["shape"])) for name, about in header.items() if name != "__metadata__"}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no header of safetensors: {error}") from None
