"""The one version of Flower that the network parts are written for, and how its programs are started.

A simulation uses Flower's public interface and runs with any 1.41. A federation over a network also uses internals
(the runtime interface between a SuperNode and its worker, and one module of SuperNode), which change from version to
version: there, any other version is refused before anything starts.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from common.errors import FedvoxError

REQUIRED_FLOWER = "1.41.0"

# What Flower may keep in one object: a whole piece of weights (``common.transport``), for objects are what costs.
CHUNK_BYTES = 16 * 2**20
# A piece is copied a dozen times on its way. By default glibc gets the memory for every copy from the system, page by
# page, and gives it back, which takes longer than the copying.
_KEEP_FREED_PIECES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}


class FlowerVersionError(FedvoxError):
    """Another version of Flower is installed than the network parts are written for."""


def check_flower_version(installed: str | None = None) -> None:
    """Refuses every version of Flower but the one that this was written and tested for.

    Args:
        installed: None asks the installation.

    Raises:
        FlowerVersionError: it is another one.
    """
    installed = installed or version("flwr")
    if installed != REQUIRED_FLOWER:
        raise FlowerVersionError(
            f"Flower {installed} is installed, and this version of Fedvox works with Flower {REQUIRED_FLOWER} only: "
            f"pip install flwr=={REQUIRED_FLOWER}"
        )


def flower_environment(home: Path) -> dict[str, str]:
    """The environment for a child process that imports Flower: its own state folder, no telemetry, no update check.

    Args:
        home: where Flower keeps its state; made by Flower when needed.
    """
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    chunks = {"FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES)}
    return {**os.environ, **quiet, **chunks, **_KEEP_FREED_PIECES, "FLWR_HOME": str(home), "PYTHONUNBUFFERED": "1"}
