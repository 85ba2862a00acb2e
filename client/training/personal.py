"""A site's personal model beside the global one: what it keeps of it between rounds never leaves the site.

* ``OwnNorms``: the idea of FedBN (Li et al. 2021, arXiv 2102.07623), with GroupNorm in place of batch normalisation.
  Scales and shifts of the norm layers stay at the site; all other weights are shared.
* ``Ditto`` (Li et al. 2021, arXiv 2012.04221): the site trains a second model, which a proximal term holds near the
  global one. The global model is trained as without it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from client.training.scaled_step import NonFiniteLossError
from client.training.trainer import StepCallback, Trainer, Training
from common.config.federation import FederationConfig
from common.imaging.cache.case_cache import CachedCase
from common.protocol.codec import Vector
from common.weights.part import norm_part

log = logging.getLogger("fedvox.client")


@dataclass(frozen=True)
class LocalRound:
    """What a site trains with in a round; as for ``Trainer.train``."""

    cases: Sequence[CachedCase]
    number: int
    seed: int
    on_step: StepCallback | None = None
    correction: Vector | None = None

    def train(self, trainer: Trainer, weights: Vector) -> Training:
        """Train from ``weights`` as every site of the federation does."""
        return trainer.train(weights, self.cases, self.number, self.seed, self.on_step, self.correction)


class PersonalMethod(Protocol):
    """How a site makes its personal model; ``kept`` is what it keeps between rounds, None before the first."""

    def own_steps(self, scans: int) -> int:
        """Return how many steps of a round train the personal model alone, at a site with so many scans."""

    def model(self, weights: Vector, kept: Vector) -> Vector:
        """Return the personal model that goes with the global ``weights``."""

    def train(self, weights: Vector, kept: Vector | None, local: LocalRound) -> tuple[Training, Vector]:
        """Train for the federation and for the site; return also what the site keeps from now on."""


class OwnNorms:
    """Every site keeps the scales and shifts of its norm layers; its update holds zeros in their places.

    Under differential privacy they are trained with noise like all weights, so what the site keeps reveals no more
    than its updates.

    Parameters
    ----------
    trainer
        The site's trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._part = norm_part(trainer.layout)

    def own_steps(self, scans: int) -> int:
        """Return 0."""
        del scans
        return 0

    def model(self, weights: Vector, kept: Vector) -> Vector:
        """Return the global weights with the site's own norm layers."""
        own = weights.copy()
        self._part.put(own, kept)
        return own

    def train(self, weights: Vector, kept: Vector | None, local: LocalRound) -> tuple[Training, Vector]:
        """Train from the personal model, in the first round from the global one."""
        start = weights if kept is None else self.model(weights, kept)
        training = local.train(self._trainer, start)
        own = self._part.take(start) + self._part.take(training.update)
        self._part.clear(training.update)
        return training, own


class Ditto:
    """Every site trains a second model on loss + lambda / 2 * |v - w|^2, where w is the global model.

    The second model never leaves and influences nothing that does, so it is trained without noise even under
    differential privacy. If its loss becomes infinite or NaN, it stays as it was.

    Parameters
    ----------
    trainer
        The site's trainer.
    own
        The trainer of the second model; its ``proximal_mu`` is lambda.
    """

    def __init__(self, trainer: Trainer, own: Trainer) -> None:
        self._trainer = trainer
        self._own = own

    def own_steps(self, scans: int) -> int:
        """Return the steps of the second model."""
        return self._own.config.steps_of(scans)

    def model(self, weights: Vector, kept: Vector) -> Vector:
        """Return the second model."""
        del weights
        return kept

    def train(self, weights: Vector, kept: Vector | None, local: LocalRound) -> tuple[Training, Vector]:
        """Train the global model, then the second one, which begins as the global model of the first round."""
        training = local.train(self._trainer, weights)
        start = weights if kept is None else kept
        done = training.steps

        def on_own_step(step: int, loss: float | None) -> None:
            if local.on_step is not None:
                local.on_step(done + step, loss)

        # lambda * (v - w) is the pull towards the start of the round and this constant.
        constant = None if kept is None else np.float32(self._own.proximal_mu) * (kept - weights)
        try:
            own = self._own.train(start, local.cases, local.number, local.seed, on_own_step, constant)
        except NonFiniteLossError as error:
            log.warning("round %d: the personal model stays as it was: %s", local.number, error)
            return training, start
        return training, start + own.update


def make_personal_method(config: FederationConfig, trainer: Trainer) -> PersonalMethod | None:
    """Make what a federation's ``personal`` asks for, for a site with this trainer; None without it."""
    personal = config.personal
    if personal is None:
        return None
    if personal.method == "norms":
        return OwnNorms(trainer)
    changes = {"local_steps": personal.steps, "local_epochs": None} if personal.steps is not None else {}
    training = config.training.model_copy(update=changes)
    own = Trainer(trainer.model, trainer.plan, training, config.rounds * training.local_steps, trainer.device)
    own.proximal_mu = personal.strength
    return Ditto(trainer, own)
