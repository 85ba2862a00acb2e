"""The simulated sites: their cases, trainer and privacy budget."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context

from client.runner.client_app import Budget, Observer, Site
from client.runner.gradient_memory import MEMORY, GradientMemory, memory_of
from client.runner.personal_model import KEPT, PersonalModel, open_personal_model
from client.training.dp_trainer import make_trainer
from client.training.trainer import Trainer
from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.imaging.cache.case_cache import CachedCase, CaseCache
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan, Spend
from common.planning.resolve import with_privacy
from common.privacy.accounting import largest_epsilon
from common.protocol.codec import Vector
from common.protocol.messages import mean_of_known
from common.seeds import seed_of
from common.system.devices import choose_device
from server.progress.events import EventSink, SiteStarted, SiteStep
from server.simulation.data_setup import find_simulated_dataset
from server.simulation.partition import SiteCases, SitePartition

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def folder_name(site: str) -> str:
    """Return a site's name as that of a folder; names that are none get a part of their SHA-256."""
    if _FOLDER.fullmatch(site):
        return site
    kept = re.sub(r"[^A-Za-z0-9-]+", "-", site)[:40]
    return f"site-{kept}-{hashlib.sha256(site.encode(errors='surrogatepass')).hexdigest()[:12]}"


@dataclass(frozen=True)
class SimulatedBudget:
    """Tracks the privacy spent without limiting it, assuming that a site has answered every round.

    Attributes
    ----------
    plan
        The cost of a round.
    delta
        The federation's delta.
    """

    plan: PrivacyPlan
    delta: float

    def spend(self, run: str, round: int, spends: Sequence[Spend]) -> float:
        """Return the largest epsilon of any patient after ``round``.

        No patient is both trained on and validated on.
        """
        del run
        trains = any(spend.purpose == "training" for spend in spends)
        costs = self.plan.costs(round if trains else round - 1, round)
        return largest_epsilon(costs, self.delta)


@dataclass(frozen=True)
class SiteEvents:
    """Observer of sites in this process that passes their progress on as events."""

    emit: EventSink

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Pass on the start of a round."""
        self.emit(SiteStarted(round, site, steps))

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Pass on a finished step."""
        self.emit(SiteStep(round, site, step, steps, loss))


@dataclass
class SimulatedSites:
    """Opens the site that a Flower context asks for.

    It can be pickled for another process, which opens its sites again.

    Attributes
    ----------
    data
        The dataset folder.
    cache
        Folder of preprocessed scans; None keeps them in memory.
    device
        As in ``choose_device``.
    vectors
        Folder for what sites keep between rounds; None if nothing is trained.
    models
        Folder for the bundles of personal models.
    """

    config: FederationConfig
    plan: Plan
    partition: SitePartition
    data: Path
    cache: Path | None
    device: str
    observer: Observer | None = None
    vectors: Path | None = None
    models: Path | None = None
    _opened: dict[str, Site] = field(default_factory=dict, repr=False)
    _trainer: Trainer | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}, "_trainer": None, "observer": None}

    def __call__(self, context: Context) -> Site:
        """Open the site of the context's ``partition-id``."""
        return self.open(self.names[int(context.node_config["partition-id"])])

    @property
    def names(self) -> list[str]:
        """Names of all sites, in the order of their ``partition-id``."""
        return sorted(self.partition.sites)

    def training_patients(self) -> list[int]:
        """Count the training patients of each site, in the order of ``names``."""
        owners = {case.name: case.owner for case in find_simulated_dataset(self.config, self.data).cases}
        sites = (self.partition.sites[name] for name in self.names)
        return [len({owners.get(case, case) for case in site.train}) for site in sites]

    def open(self, name: str) -> Site:
        """Open the named site and preprocess its scans, once per process."""
        if name not in self._opened:
            members = self.partition.sites[name]
            self._opened[name] = Site(
                name=name,
                train_cases=self._cases(name, members.train, members),
                validation_cases=self._cases(name, members.validation, members),
                seed=seed_of(self.config.seed, name),
                digest=self.config.digest(),
                trainer=self.trainer,
                observer=self.observer,
                privacy=self.trainer.privacy,
                budget=self._budget,
                memory=self._memory(name),
                personal=self._personal(name),
            )
        return self._opened[name]

    @property
    def trainer(self) -> Trainer:
        """The trainer, shared by all sites of a process because every message carries the weights."""
        if self._trainer is None:
            self._trainer = make_trainer(self.config, self.plan, choose_device(self.device), repeatable=True)
        return self._trainer

    @property
    def _budget(self) -> Budget | None:
        if self.config.privacy is None or self.trainer.privacy is None:
            return None
        return SimulatedBudget(self.trainer.privacy, self.config.privacy.delta)

    def _memory(self, site: str) -> GradientMemory | None:
        own = self._kept(site)
        return None if own is None else memory_of(self.config, own / MEMORY, site)

    def _personal(self, site: str) -> PersonalModel | None:
        own = self._kept(site)
        if own is None or self.models is None:
            return None
        return open_personal_model(self.config, self.trainer, site, own / KEPT, self.models / folder_name(site))

    def _kept(self, site: str) -> Path | None:
        # A site's name may contain any character.
        return self.vectors and self.vectors / hashlib.sha256(site.encode()).hexdigest()[:24]

    def score(self, weights: Vector, patients: int | None = None) -> float:
        """Return the mean Dice of a model: over labels, then over the sites' validation scans, then over sites.

        Parameters
        ----------
        weights
            The model, flat.
        patients
            Most validation scans per site, the first ones by name; None for all.
        """
        scores = []
        for name in self.names:
            found = self.trainer.validate(weights, self.open(name).validation_cases[:patients])
            scores.append(mean_of_known(found.dice.values()))
        mean = mean_of_known(scores)
        return 0.0 if math.isnan(mean) else mean

    def pooled(self, config: FederationConfig) -> SimulatedSites:
        """Return one site that holds all patients; each patient keeps the scanner shift of their own site."""
        opened = [self.open(name) for name in self.names]
        members = SiteCases(
            train=tuple(case.name for site in opened for case in site.train_cases),
            validation=tuple(case.name for site in opened for case in site.validation_cases),
        )
        partition = SitePartition(method="pooled", seed=config.seed, sites={"pooled": members})
        plan = with_privacy(self.plan, config)
        sites = SimulatedSites(config, plan, partition, self.data, self.cache, self.device, self.observer)
        sites._opened["pooled"] = Site(
            name="pooled",
            train_cases=[case for site in opened for case in site.train_cases],
            validation_cases=[case for site in opened for case in site.validation_cases],
            seed=seed_of(config.seed, "pooled"),
            digest=config.digest(),
            trainer=sites.trainer,
            observer=self.observer,
            privacy=sites.trainer.privacy,
            budget=sites._budget,
        )
        return sites

    def _cases(self, site: str, names: Sequence[str], members: SiteCases) -> list[CachedCase]:
        cache = CaseCache(self.cache, self.plan.preprocessing, self.plan.labels)
        cases = {case.name: case for case in find_simulated_dataset(self.config, self.data).cases}
        missing = [name for name in names if name not in cases]
        if missing:
            raise ConfigError(
                f"{self.data}: has no case {missing[0]}, which partition.json lists; give the same --data"
            )
        found = [cases[name] for name in names]
        return cache.prepare(found, shift=members.shift, shift_seed=seed_of(self.partition.seed, site))
