"""Vectors that a strategy keeps between rounds, as files next to the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from common.errors import DamagedFileError
from common.protocol.codec import Vector
from common.weights.store import MissingWeightsError, map_file
from server.run_store.folder import RESTORE, RunFolder
from server.run_store.weight_file import WeightFile


def map_strategy_vector(folder: RunFolder, round_number: int, name: str, size: int) -> Vector:
    """Return a strategy's vector after a round, read-only and memory-mapped; zeros before the first round.

    Raises
    ------
    DamagedFileError
        If the file is missing or damaged.
    """
    if round_number == 0:
        return np.zeros(size, np.float32)
    file = folder.strategy_vector_path(round_number, name)
    try:
        content = map_file(file)
    except (OSError, MissingWeightsError):
        content = np.empty(0, np.uint8)
    if content.size != 4 * size:
        raise DamagedFileError(file, "is missing or damaged", RESTORE)
    return content.view("<f4").astype(np.float32, copy=False)


@contextmanager
def strategy_vectors(
    folder: RunFolder, round_number: int, names: Sequence[str], size: int
) -> Iterator[dict[str, WeightFile]]:
    """Write the strategy's vectors after a round, part by part; they are complete and on disk after the block.

    Raises
    ------
    OutputError
        If the disk is full or cannot be written.
    RunError
        If a vector does not have ``size`` values.
    """
    paths = {name: folder.strategy_vector_path(round_number, name) for name in names}
    files = {name: WeightFile(path, size) for name, path in paths.items()}
    try:
        yield files
        for name, file in files.items():
            folder.note(paths[name], file.finish())
    finally:
        for file in files.values():
            file.close()
