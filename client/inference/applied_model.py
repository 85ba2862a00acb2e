"""A model and how it is applied, and what it finds in a scan."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import common
from common.plan.plan import Plan


@dataclass(frozen=True)
class AppliedModel:
    """A model bundle and the options that change its results.

    Attributes
    ----------
    plan
        The bundle's plan.
    sha256
        SHA-256 of the bundle's weights.
    federation
        Name of the federation that trained it; empty if the bundle does not say.
    settings
        Options, such as ``overlap=0.5``.
    """

    plan: Plan
    sha256: str
    federation: str
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name for people."""
        return f"Fedvox {self.federation}".strip()

    @property
    def version(self) -> str:
        """Version of the software that applies it."""
        return common.__version__

    @property
    def parameters(self) -> dict[str, str]:
        """What else identifies it, and how it is applied; federation, digest of the weights, settings."""
        named = {"federation": self.federation} if self.federation else {}
        return named | {"model_sha256": self.sha256} | dict(one.split("=", 1) for one in self.settings)

    @property
    def texts(self) -> tuple[str, ...]:
        """Names and meanings that results quote, in any letters."""
        return (self.federation, *self.plan.labels.values(), *(one.meaning for one in self.plan.label_codes.values()))

    @property
    def key(self) -> str:
        """A digest that differs between models, versions and options that may give different results."""
        content = [self.plan.model_dump(mode="json"), self.sha256, self.federation, self.version, self.settings]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model found in a scan.

    Attributes
    ----------
    label
        Label map, (x, y, z) in RAS+ order.
    probabilities
        Of every class, (classes, x, y, z), background first; None if nobody wants them.
    """

    label: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None = None
