"""Supported versions of Flower, and the environment of its programs."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from common.errors import FedvoxError

SUPPORTED_FLOWER = ("1.41", "1.42")


class FlowerVersionError(FedvoxError):
    """The installed version of Flower is not supported."""


def check_flower_version(installed: str | None = None) -> None:
    """Check that Flower has a version that Fedvox was tested with.

    Parameters
    ----------
    installed
        Version to check; None means the installed one.

    Raises
    ------
    FlowerVersionError
        If the version is not supported.
    """
    installed = installed or version("flwr")
    if ".".join(installed.split(".")[:2]) not in SUPPORTED_FLOWER:
        raise FlowerVersionError(
            f"Flower {installed} is installed, and this version of Fedvox works with Flower "
            f"{' and '.join(SUPPORTED_FLOWER)}: pip install 'flwr>=1.41,<1.43'"
        )


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment for a child process that imports Flower, without telemetry and update checks.

    Parameters
    ----------
    home
        Folder for Flower's state; Flower creates it when needed.
    """
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PYTHONUNBUFFERED": "1"}
