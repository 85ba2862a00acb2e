"""``chosen.json``: which settings of a kit's federation file were chosen from the fingerprints of its sites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from common.config.federation import FederationConfig
from common.config.network import SiteName
from common.errors import ConfigError
from common.plan.base import Frozen
from common.plan.plan import IntensityPlan

CHOSEN_FILE = "chosen.json"


class Chosen(Frozen):
    """What was chosen, and from whose fingerprints; the values are in ``federation.yaml``.

    Attributes
    ----------
    keys
        Keys of the coordinator's federation file that were ``auto``.
    sites
        Sites whose fingerprints were added up.
    """

    keys: Annotated[
        tuple[
            Literal["preprocessing.spacing", "preprocessing.intensity", "model.patch_size", "training.batch_size"], ...
        ],
        Field(min_length=1),
    ]
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]

    def in_words(self, config: FederationConfig) -> Iterator[str]:
        """Say line by line what a kit's federation file says of these keys."""
        if "preprocessing.spacing" in self.keys and isinstance(config.preprocessing.spacing, tuple):
            yield f"voxel size {_by(config.preprocessing.spacing)} mm (preprocessing.spacing)"
        if "model.patch_size" in self.keys and isinstance(config.model.patch_size, tuple):
            yield f"patches of {_by(config.model.patch_size)} voxels (model.patch_size)"
        if "training.batch_size" in self.keys:
            yield f"{config.training.batch_size} patches per step (training.batch_size)"
        if "preprocessing.intensity" in self.keys and isinstance(config.preprocessing.intensity, tuple):
            for window in config.preprocessing.intensity:
                yield f"intensities {_window(window)} (preprocessing.intensity)"


def read_chosen(kit: Path) -> Chosen:
    """Read the file of a kit whose ``kit.yaml`` names it.

    Raises
    ------
    ConfigError
        The file is missing or damaged.
    """
    file = kit / CHOSEN_FILE
    try:
        return Chosen.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        raise ConfigError(f"{file}: is missing or damaged; ask the coordinator for a new kit") from None


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _window(plan: IntensityPlan) -> str:
    return f"from {plan.lower:g} to {plan.upper:g} HU, mean {plan.mean:g}, standard deviation {plan.std:g}"
