"""Updates that a simulation keeps, so that models can be built again without some of its sites.

Updates are removed after their round. With ``simulation.keep_updates_gb``, a simulation keeps those of as many rounds
as fit, spread evenly over the run: for each of them a folder with the model that the sites were sent and their accepted
updates, as they counted. A federation over a network keeps none.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.config.federation import FederationConfig
from common.errors import ConfigError, DamagedFileError
from common.protocol.codec import Vector
from common.system.files import new_folder
from common.weights.store import MissingWeightsError, map_file
from server.rounds.strategies.strategy import Updates, Window
from server.rounds.strategies.weighted_mean import WeightedMean

KEPT = "kept_updates"
_VECTORS, _ABOUT = "vectors.f32", "round.json"
_AT_A_TIME = 2**20


@dataclass(frozen=True)
class KeptRound:
    """A round whose updates were kept.

    Attributes
    ----------
    number
        The round.
    model
        The weights that the sites were sent, mapped from disk.
    updates
        Site -> its update, as it counted, mapped from disk.
    weights
        Site -> how much its update counted.
    """

    number: int
    model: Vector
    updates: Mapping[str, Vector]
    weights: Mapping[str, float]

    def rebuilt(self, sites: frozenset[str]) -> Vector:
        """Return the next model as FedAvg would have made it from these sites alone; the model as it was from none."""
        if not sites:
            return np.array(self.model)
        mean = WeightedMean(self.model.size)
        for site in sorted(sites):
            mean.add(self.updates[site], self.weights[site])
        return self.model + mean.mean()


def rounds_to_keep(config: FederationConfig, sites: int, size: int) -> range:
    """Return the rounds whose updates are kept.

    Parameters
    ----------
    config
        The federation.
    sites
        How many take part. One alone keeps nothing: it made the whole model.
    size
        Weights of the model.

    Raises
    ------
    ConfigError
        Not even one round fits.
    """
    budget = config.simulation.keep_updates_gb if config.simulation is not None else 0
    if not budget or sites < 2:
        return range(0)
    one = 4e-9 * size * (sites + 1)
    if one > budget:
        raise ConfigError(
            f"simulation.keep_updates_gb: the updates of one round and their model take {one:.3g} GB, more than "
            f"{budget:g}; raise it, or write 0"
        )
    return range(1, config.rounds + 1, math.ceil(config.rounds / int(budget / one)))


def keep_round(run: Path, number: int, model: Vector, updates: Updates) -> None:
    """Keep the updates of a round; those of an attempt that a crash ended are replaced.

    Raises
    ------
    OutputError
        The disk is full or cannot be written.
    """
    folder = _folder(run, number)
    shutil.rmtree(folder, ignore_errors=True)
    rows = {site: row for row, site in enumerate(updates.results, start=1)}
    with new_folder(folder) as temporary, (temporary / _VECTORS).open("wb") as file:

        def write(row: int, start: int, values: Vector) -> None:
            file.seek(4 * (row * model.size + start))
            file.write(np.ascontiguousarray(values, "<f4").data)

        for start in range(0, model.size, _AT_A_TIME):
            write(0, start, model[start : start + _AT_A_TIME])
        for start, vectors in updates.each(_vectors):
            for site, values in vectors.items():
                write(rows[site], start, values)
        weights = {site: updates.weights[site] for site in rows}
        (temporary / _ABOUT).write_text(json.dumps({"size": model.size, "weights": weights}), encoding="utf-8")


def kept_numbers(run: Path) -> list[int]:
    """Return the rounds whose updates a run kept, in order, without a look at these."""
    return [int(folder.name.removeprefix("round_")) for folder in _folders(run)]


def _vectors(window: Window) -> tuple[int, dict[str, Vector]]:
    return window.where.start, {site: update for site, (update, *_) in window.updates()}


def kept_rounds(run: Path) -> Iterator[KeptRound]:
    """Yield the rounds whose updates a run kept, in order.

    Raises
    ------
    DamagedFileError
        A file is missing or damaged.
    """
    for folder in _folders(run):
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            weights = {str(site): float(weight) for site, weight in about["weights"].items()}
            vectors = map_file(folder / _VECTORS).view("<f4").reshape(len(weights) + 1, int(about["size"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MissingWeightsError):
            raise DamagedFileError(folder, "is damaged", "remove it, and the round is left out") from None
        rows = [row.astype(np.float32, copy=False) for row in vectors]
        number = int(folder.name.removeprefix("round_"))
        yield KeptRound(number, rows[0], dict(zip(weights, rows[1:], strict=True)), weights)


def _folders(run: Path) -> list[Path]:
    return sorted((run / KEPT).glob("round_*"))


def _folder(run: Path, number: int) -> Path:
    return run / KEPT / f"round_{number:06d}"
