"""A hospital's own data folder, opened as the ``Site`` that its client app works for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Context

from client.app import Observer, Site
from client.trainer import Trainer
from common.config import FederationConfig
from common.devices import choose_device
from common.errors import DataError, FedvoxError
from common.imaging.cache import CachedCase, CaseCache
from common.imaging.dataset import Case, find_dataset
from common.messages import ErrorCode
from common.models.unet3d import build_model
from common.plan import Plan
from common.seeds import seed_of

MOST_WORKERS = 4
Progress = Callable[[int, int], None]


class SiteDataError(FedvoxError):
    """The site's data cannot be used; the server learns the code alone."""

    code = ErrorCode.NO_DATA


class LocalSite:
    """Opens one hospital's site, once, and keeps it warm. To be given to ``make_client_app``.

    Args:
        config: the federation of the site's kit.
        plan: of the kit.
        name: of the site.
        data: the dataset folder.
        cache: folder for preprocessed scans; None keeps them in memory.
        validation: names of the cases to score models with, or the share of cases to draw from the seed.
        device: as in ``choose_device``.
        observer: sees the site at work.
        progress: is told how many of how many cases are prepared.
    """

    def __init__(
        self,
        config: FederationConfig,
        plan: Plan,
        name: str,
        data: Path,
        cache: Path | None,
        validation: Sequence[str] | float,
        device: str = "auto",
        observer: Observer | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._config = config
        self._plan = plan
        self._name = name
        self._data = data
        self._cache = cache
        self._device = device
        self._validation = validation
        self._observer = observer
        self._progress = progress
        self._site: Site | None = None

    def __call__(self, context: Context) -> Site:
        """The site, whatever Flower's context is; opened now if that did not succeed before."""
        del context
        return self.open()

    def open(self) -> Site:
        """The site, with all its scans preprocessed and its model on the device.

        Raises:
            SiteDataError: the data cannot be used.
            ConfigError: the device is not there.
        """
        if self._site is None:
            self._site = self._opened()
        return self._site

    def _opened(self) -> Site:
        config, plan = self._config, self._plan
        try:
            cases = {case.name: case for case in find_dataset(self._data).cases if case.label is not None}
            train, validation = self._split(sorted(cases))
            prepared = self._prepare([cases[name] for name in (*train, *validation)])
        except DataError as error:
            raise SiteDataError(str(error)) from error
        total_steps = config.rounds * config.training.local_steps
        trainer = Trainer(build_model(plan.model), plan, config.training, total_steps, choose_device(self._device))
        by_name = {case.name: case for case in prepared}
        return Site(
            name=self._name,
            train_cases=[by_name[name] for name in train],
            validation_cases=[by_name[name] for name in validation],
            # As in a simulation, so that both give the same model.
            seed=seed_of(config.seed, self._name),
            digest=config.digest(),
            trainer=trainer,
            observer=self._observer,
        )

    def _prepare(self, cases: Sequence[Case]) -> list[CachedCase]:
        cache = CaseCache(self._cache, self._plan.preprocessing, self._plan.labels)
        return cache.prepare(cases, workers=min(MOST_WORKERS, os.cpu_count() or 1), progress=self._progress)

    def _split(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        if isinstance(self._validation, float):
            return split_cases(names, self._validation, seed_of(self._config.seed, self._name))
        return split_by_names(names, self._validation)


def split_cases(names: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Draws the cases that are not trained on; every case counts as a patient of its own.

    Args:
        names: of all cases; their order does not matter.
        fraction: of all cases, rounded down, but at least one and never all.
        seed: decides the draw.

    Returns:
        Names to train on and names to validate on, each sorted.

    Raises:
        SiteDataError: there are fewer than two cases.
    """
    if len(names) < 2:
        raise SiteDataError(f"{len(names)} labelled cases: one is needed to train on and one to score models with")
    shuffled = [str(name) for name in np.random.default_rng(seed).permutation(sorted(names))]
    count = min(max(1, int(fraction * len(shuffled))), len(shuffled) - 1)
    return sorted(shuffled[count:]), sorted(shuffled[:count])


def split_by_names(names: Sequence[str], validation: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits as a hospital asked for; both lists come back sorted.

    Raises:
        SiteDataError: a named case does not exist, or none would be left to train on.
    """
    if missing := sorted(set(validation) - set(names)):
        raise SiteDataError(f"site.yaml: validation_cases: the data has no labelled case {missing[0]}")
    train = sorted(set(names) - set(validation))
    if not train:
        raise SiteDataError("site.yaml: validation_cases: names every case, and none is left to train on")
    return train, sorted(validation)
