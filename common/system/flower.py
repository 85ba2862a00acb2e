"""Which versions of Flower this works with, and how its programs are started."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from common.errors import FedvoxError

SUPPORTED_FLOWER = ("1.41", "1.42")


class FlowerVersionError(FedvoxError):
    """A version of Flower is installed that this was not tested with."""


def check_flower_version(installed: str | None = None) -> None:
    """Refuses every version of Flower that the network parts were not tested with.

    Parameters
    ----------
    installed
        None asks the installation.

    Raises
    ------
    FlowerVersionError
        it is another one.
    """
    installed = installed or version("flwr")
    if ".".join(installed.split(".")[:2]) not in SUPPORTED_FLOWER:
        raise FlowerVersionError(
            f"Flower {installed} is installed, and this version of Fedvox works with Flower "
            f"{' and '.join(SUPPORTED_FLOWER)}: pip install 'flwr>=1.41,<1.43'"
        )


def flower_environment(home: Path) -> dict[str, str]:
    """The environment for a child process that imports Flower: its own state folder, no telemetry, no update check.

    Parameters
    ----------
    home
        where Flower keeps its state; made by Flower when needed.
    """
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PYTHONUNBUFFERED": "1"}
