"""The algorithm of a federation (``strategy.name``), and the options that belong to it.

Each is explained, with its paper, in ``server/rounds/strategies``; what sites do differently, in ``client/training``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from common.plan.base import Frozen, OpenFraction, PositiveFloat, PositiveInt

Algorithm = Literal[
    "fedavg",
    "fedprox",
    "fednova",
    "feddyn",
    "scaffold",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "median",
    "trimmed_mean",
    "multi_krum",
    "geometric_median",
    "clipped_mean",
]
_ADAPTIVE = {"server_learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
OPTIONS: Mapping[str, Mapping[str, float]] = {
    "fedavg": {},
    "fedprox": {"proximal_mu": 0.01},
    "fednova": {},
    "feddyn": {"feddyn_alpha": 0.1},
    "scaffold": {"server_learning_rate": 1.0},
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadam": _ADAPTIVE,
    "fedyogi": _ADAPTIVE,
    "median": {},
    "trimmed_mean": {"malicious_sites": 1},
    "multi_krum": {"malicious_sites": 1},
    "geometric_median": {},
    "clipped_mean": {"clip_factor": 1.0},
}
"""Algorithm -> its options with their defaults."""
COUNT_SITES_ALIKE = ("feddyn", "scaffold", "median", "trimmed_mean", "multi_krum", "geometric_median")
"""Algorithms that give no site more weight than another.

A minority of sites must not hold half of the weight; the vectors of FedDyn and SCAFFOLD are means over all sites, also
those that are absent.
"""
KEEP_VECTORS = ("feddyn", "scaffold")
"""Algorithms whose sites keep a vector of the model's size between rounds (``client.runner.gradient_memory``)."""
NEED_SGD = ("fednova", "scaffold")
"""Algorithms that compute the mean gradient of a site's steps from its update."""
SENT_VECTORS: Mapping[str, tuple[str, ...]] = {"scaffold": ("control",)}
"""Algorithm -> which of its server's vectors sites receive behind the model."""


class AlgorithmConfig(Frozen):
    """An algorithm and its options; options of other algorithms are None, and are not written out.

    Attributes
    ----------
    name
        The algorithm.
    proximal_mu
        How strongly sites stay near the global model: weight of half the squared distance to it (``fedprox``).
    feddyn_alpha
        Weight of half the squared distance to the global model, and of what sites remember (``feddyn``).
    server_learning_rate
        Factor for the server's step (``scaffold``, ``fedavgm``, ``fedadam``, ``fedyogi``).
    server_momentum
        Share of the last step that the next one keeps (``fedavgm``).
    beta_1, beta_2
        Decay of the first and second moment of the mean update (``fedadam``, ``fedyogi``).
    tau
        Degree of adaptivity: steps are divided by the root of the second moment plus this (``fedadam``, ``fedyogi``).
    malicious_sites
        Most sites that may send anything (``trimmed_mean``, ``multi_krum``).
    clip_factor
        Length to which longer updates are scaled down, as a multiple of the round's median (``clipped_mean``).
    """

    name: Algorithm = "fedavg"
    proximal_mu: PositiveFloat | None = None
    feddyn_alpha: PositiveFloat | None = None
    server_learning_rate: PositiveFloat | None = None
    server_momentum: OpenFraction | None = None
    beta_1: OpenFraction | None = None
    beta_2: OpenFraction | None = None
    tau: PositiveFloat | None = None
    malicious_sites: PositiveInt | None = None
    clip_factor: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        defaults = OPTIONS.get(str(content.get("name", "fedavg")), {})
        return {**content, **{key: value for key, value in defaults.items() if content.get(key) is None}}

    @model_validator(mode="after")
    def _no_option_of_another_algorithm(self) -> Self:
        for option in sorted(_ALL_OPTIONS - set(OPTIONS[self.name])):
            if getattr(self, option) is not None:
                owners = ", ".join(name for name, options in OPTIONS.items() if option in options)
                raise ValueError(f"{option} is an option of {owners}, and name is {self.name}; remove it")
        return self

    @model_serializer(mode="wrap")
    def _own_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def options(self) -> dict[str, Any]:
        """Return the algorithm's own options."""
        return {option: getattr(self, option) for option in OPTIONS[self.name]}

    @property
    def keeps_vectors(self) -> bool:
        """Return whether sites keep a vector between rounds."""
        return self.name in KEEP_VECTORS

    @property
    def sent_vectors(self) -> tuple[str, ...]:
        """Return the names of the server's vectors that sites receive behind the model."""
        return SENT_VECTORS.get(self.name, ())

    def check_combination(self, optimizer: str, download: str, is_private: bool) -> None:
        """Refuse what the algorithm does not work with: ``training.optimizer``, ``transport.download``, ``privacy``.

        Raises
        ------
        ValueError
            Names the key, the reason and what to write.
        """
        if self.keeps_vectors and is_private:
            raise ValueError(
                f"strategy.name {self.name} does not work with privacy: what a site keeps would carry the noise of "
                "whole rounds into every later step; choose fedavg or fedprox"
            )
        if self.name == "fednova" and is_private:
            raise ValueError(
                "strategy.name fednova does not work with privacy: under privacy all sites make the same number of "
                "steps, and there is nothing to normalise; choose fedavg or fedprox"
            )
        if self.name in NEED_SGD and optimizer != "sgd":
            raise ValueError(
                f"strategy.name {self.name} needs training.optimizer sgd: {optimizer} rescales every gradient, so "
                "that an update does not tell the mean gradient; write sgd with its own learning_rate, or choose feddyn"
            )
        if self.sent_vectors and download != "float32":
            raise ValueError(
                f"strategy.name {self.name} needs transport.download float32: the server's control variate must be the "
                "same at the sites to the last digit"
            )

    @property
    def malicious(self) -> int:
        """Return how many sites may send anything, as far as the algorithm promises."""
        return self.malicious_sites or (1 if self.name in ("median", "geometric_median") else 0)

    @property
    def least_updates(self) -> int:
        """Return the fewest updates for which that promise holds: 2f + 1, or 2f + 3 for Multi-Krum."""
        return 2 * self.malicious + (3 if self.name == "multi_krum" else 1)


_ALL_OPTIONS = {option for options in OPTIONS.values() for option in options}
