"""A site's personal model: what the site keeps between rounds, and the bundle that ``fedvox-client predict`` uses.

The bundle is written when the model is scored: at the start of a round, with the global model of the round before, and
last in the final evaluation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
from client.site_vectors import Kept, SiteVectors
from client.training.personal import LocalRound, PersonalMethod, make_personal_method
from client.training.trainer import Trainer, Training, Validation
from common.config.federation import FederationConfig
from common.errors import DamagedFileError, OutputError
from common.imaging.cache.case_cache import CachedCase
from common.models.bundle_file import write_bundle
from common.protocol.codec import Task, Vector
from common.protocol.messages import mean_of_known
from common.system.state_file import MISSING

log = logging.getLogger("fedvox.client")

KEPT = "personal"
"""Name of the folder of what a site keeps between rounds."""
_OWN = "own"


@dataclass(frozen=True)
class PersonalModel:
    """A site's personal model, of one federation.

    Attributes
    ----------
    trainer
        The site's trainer.
    method
        How the model is made.
    vectors
        Keeps what the site needs of it between rounds.
    bundle
        Folder of the model bundle.
    about
        What the bundle's provenance says besides round and score.
    """

    trainer: Trainer
    method: PersonalMethod
    vectors: SiteVectors
    bundle: Path
    about: Mapping[str, Any]

    def kept(self, task: Task) -> Kept:
        """Return what was kept before a task's round; nothing before the first training.

        Nothing, with a warning, also if it is damaged, or missing although a round of this site counted: no other site
        depends on it.
        """
        try:
            kept = self.vectors.read(task.run, task.round)
        except DamagedFileError as error:
            return _lost(task, error.path, error.problem)
        if kept.round < task.counted_last:
            return _lost(task, self.vectors.path(task.run, task.counted_last), MISSING)
        return kept

    def score(self, task: Task, weights: Vector, kept: Kept, cases: Sequence[CachedCase]) -> Validation | None:
        """Score the personal model that goes with the global ``weights``, and write its bundle; None if there is none.

        The score is exact, also under differential privacy. A bundle that cannot be written ends no round, which may be
        paid for already: the log says why.
        """
        if not kept.vectors:
            return None
        own = self.method.model(weights, kept.vectors[_OWN])
        found = self.trainer.score(own, cases)
        about = {
            "run": task.run,
            "round": task.round - 1,
            "mean_validation_dice": _known(mean_of_known(found.dice.values())),
            "validation_dice": {str(label): _known(dice) for label, dice in found.dice.items()},
            "fedvox": common.__version__,
            "torch": version("torch"),
        }
        try:
            write_bundle(self.bundle, self.trainer.layout.split(own), self.trainer.plan, dict(self.about) | about)
        except OutputError as error:
            log.error("round %d: the personal model is not up to date: %s", task.round, error)
        return found

    def train(self, task: Task, weights: Vector, kept: Kept, local: LocalRound) -> Training:
        """Train the global and the personal model; what is kept is on disk when this returns.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        training, own = self.method.train(weights, kept.vectors.get(_OWN), local)
        self.vectors.write(task.run, task.round, {_OWN: own}, kept.round)
        return training


def open_personal_model(
    config: FederationConfig, trainer: Trainer, site: str, kept: Path | None, bundle: Path | None
) -> PersonalModel | None:
    """Open a site's personal model, as far as it was trained; None if the federation has none.

    Parameters
    ----------
    config
        The federation.
    trainer
        The site's trainer.
    site
        Name of the site.
    kept
        Folder of what the site keeps between rounds.
    bundle
        Folder of the model bundle.

    Raises
    ------
    ValueError
        A folder is missing.
    """
    method = make_personal_method(config, trainer)
    if method is None or config.personal is None:
        return None
    if kept is None or bundle is None:
        raise ValueError(f"{site}: a personal model needs folders")
    about = {
        "federation": config.name,
        "description": config.description,
        "digest": config.digest(),
        "site": site,
        "rounds": config.rounds,
        "strategy": config.strategy.name,
        "personal": config.personal.method,
    }
    return PersonalModel(trainer, method, SiteVectors(kept, site), bundle, about)


def _lost(task: Task, file: Path, problem: str) -> Kept:
    log.warning("round %d: %s: %s; the personal model begins again with the global one", task.round, file, problem)
    return Kept()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
