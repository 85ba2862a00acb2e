"""Scores of a whole volume, which may be larger than memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.system.memory import MemoryLimitError, require_memory

SCORES_IN_MEMORY_BYTES = 2**30
"""Scores of a volume that take more than this go to a temporary file in the output folder."""


@contextmanager
def score_array(shape: tuple[int, ...], scratch: Path | None) -> Iterator[NDArray[np.float32]]:
    """Allocate scores in memory, or in an unnamed file in ``scratch`` that vanishes with the process."""
    size = 4 * math.prod(shape)
    if scratch is None or size <= SCORES_IN_MEMORY_BYTES:
        require_memory(size, "the scores of the scan", "is its voxel size true? Else crop it")
        yield np.empty(shape, dtype=np.float32)
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
            # Reserve the space now: a full disk behind a memory map would kill the process.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            problem = f"needs {size / 2**30:.1f} GB for scores in {scratch}: {error.strerror or error}"
            raise MemoryLimitError(f"{problem}; free some space, or crop the scan") from error
        yield np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def softmax_in_place(scores: NDArray[np.float32]) -> None:
    """Convert logits (classes, x, y, z) to probabilities, plane by plane to save memory."""
    for plane in range(scores.shape[1]):
        part = scores[:, plane]
        part -= part.max(axis=0)
        np.exp(part, out=part)
        part /= part.sum(axis=0)
