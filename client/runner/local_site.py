"""Opens a hospital's data folder as the ``Site`` that its client app works for.

Under differential privacy, patients are identified as in ``client.ledger.patient_identity``, each assigned to training
or validation independently of the others, and paid for in the hospital's ledger. The number of patients on each side
is public: the site declares it, and it sets the site's weight. With or without privacy, all scans of one patient,
according to the folder's ``patients.csv`` or the site file's rule, are on the same side.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from client.consent.site_config import SITE_FILE
from client.ledger.account import People, people_of
from client.ledger.budget import LedgerBudget
from client.ledger.identifiers import Identifiers
from client.ledger.ledger import Ledger, LedgerError
from client.ledger.patient_identity import Patient, PatientIndex
from client.ledger.recognition import recognise
from client.runner.client_app import Observer, Site
from client.runner.gradient_memory import MEMORY, GradientMemory, memory_of
from client.runner.personal_model import KEPT, PersonalModel, open_personal_model
from client.runner.site_split import SiteDataError, labelled_cases, split_site
from client.state_folder import StateFolder
from client.training.dp_trainer import make_trainer
from client.training.trainer import Trainer
from common.config.federation import FederationConfig
from common.errors import DataError
from common.imaging.cache.case_cache import CachedCase, CaseCache
from common.imaging.datasets.case import Case
from common.imaging.datasets.comparison import OWN_TERMS, SiteTerms, Wanted
from common.imaging.threads import CountProgress
from common.plan.plan import Plan
from common.privacy.accounting import largest_epsilon
from common.seeds import seed_of
from common.system.devices import choose_device

log = logging.getLogger("fedvox.client")

MOST_WORKERS = 4


@dataclass(frozen=True)
class SiteData:
    """A site's scans, and which of them to validate on.

    Attributes
    ----------
    name
        Name of the site.
    folder
        The dataset folder.
    cache
        Folder for preprocessed scans; None keeps them in memory.
    validation
        Names of the validation cases, or the share of patients to validate on: drawn from the seed or, under
        differential privacy, decided by each patient's identifier or scans.
    terms
        What the hospital's site file says about its data.
    """

    name: str
    folder: Path
    cache: Path | None
    validation: Sequence[str] | float
    terms: SiteTerms = OWN_TERMS


@dataclass(frozen=True)
class LedgerAccess:
    """What a site keeps between rounds, and pays privacy with; needed for differential privacy and some algorithms.

    Attributes
    ----------
    state
        The site's state folder.
    ledger
        The hospital's ledger.
    attempt
        As for ``LedgerBudget``.
    more_rounds
        Returns how many rounds a person allowed beyond the federation's own.
    """

    state: Path | None = None
    ledger: Ledger | None = None
    attempt: Callable[[], str] = str
    more_rounds: Callable[[], int] = int


NO_LEDGER = LedgerAccess()


class LocalSite:
    """Opens one hospital's site once and keeps it open: the ``open_site`` of ``make_client_app``.

    Parameters
    ----------
    config
        The federation of the site's kit.
    plan
        The kit's plan.
    data
        The site's scans.
    device
        As in ``choose_device``.
    observer
        Follows the site's work.
    progress
        Called with cases prepared and cases in all.
    access
        What the site pays privacy with.
    """

    def __init__(
        self,
        config: FederationConfig,
        plan: Plan,
        data: SiteData,
        device: str = "auto",
        observer: Observer | None = None,
        progress: CountProgress | None = None,
        access: LedgerAccess = NO_LEDGER,
    ) -> None:
        self._config = config
        self._plan = plan
        self._data = data
        self._device = device
        self._observer = observer
        self._progress = progress
        self._access = access
        self._opening = threading.Lock()
        self._site: Site | None = None

    def __call__(self, context: Context) -> Site:
        """Return the site, whatever Flower's context; as ``open``."""
        del context
        return self.open()

    def open(self) -> Site:
        """Return the site, with its scans preprocessed and its model on the device; open it if necessary.

        Raises
        ------
        SiteDataError
            The data cannot be used.
        ConfigError
            The device is not available.
        LedgerError
            The federation is differentially private, and the ledger is missing or broken.
        """
        with self._opening:
            if self._site is None:
                self._site = self._opened()
            return self._site

    def _opened(self) -> Site:
        config, plan = self._config, self._plan
        try:
            cases = labelled_cases(self._data.folder, Wanted.by(plan, config.modality), self._data.terms)
            patients = self._identify(cases)
            train, validation = split_site(config, self._data.name, cases, self._data.validation, patients)
            prepared = self._prepare([cases[name] for name in (*train, *validation)])
        except DataError as error:
            raise SiteDataError(str(error)) from error
        trainer = make_trainer(config, plan, choose_device(self._device))
        by_name = {case.name: case for case in prepared}
        return Site(
            name=self._data.name,
            train_cases=[by_name[name] for name in train],
            validation_cases=[by_name[name] for name in validation],
            # As in a simulation, so that both give the same model; a private trainer draws from its own secrets.
            seed=seed_of(config.seed, self._data.name),
            digest=config.digest(),
            trainer=trainer,
            observer=self._observer,
            privacy=trainer.privacy,
            budget=None if patients is None else self._budget(people_of(patients, train, validation)),
            memory=self._memory(),
            personal=self._personal(trainer),
        )

    def _memory(self) -> GradientMemory | None:
        state = self._access.state
        return memory_of(self._config, state and StateFolder(state).vectors / MEMORY, self._data.name)

    def _personal(self, trainer: Trainer) -> PersonalModel | None:
        state = self._access.state
        folder = None if state is None else StateFolder(state)
        kept, bundle = (folder.vectors / KEPT, folder.personal_model) if folder else (None, None)
        return open_personal_model(self._config, trainer, self._data.name, kept, bundle)

    def _identify(self, cases: Mapping[str, Case]) -> dict[str, Patient] | None:
        if self._config.privacy is None:
            return None
        ledger = self._access.ledger
        mark = None if ledger is None else Identifiers(ledger, may_make=True).mark
        return PatientIndex(self._access.state, mark).identify(list(cases.values()))

    def _budget(self, people: People) -> LedgerBudget:
        ledger, state = self._access.ledger, self._access.state
        if ledger is None or state is None:
            raise LedgerError("the federation is differentially private, but there is no ledger; give one (--ledger)")
        # Report an unusable ledger now, not only when a round must be paid for.
        found = recognise(ledger.read(), [*people["training"], *people["validation"]])
        log.log(logging.WARNING if found.needs_a_look else logging.INFO, "patients: %s", found)
        return LedgerBudget(
            ledger, self._config, people, state / SITE_FILE, self._access.attempt, self._approved_epsilon
        )

    def _approved_epsilon(self) -> float:
        more, privacy = self._access.more_rounds(), self._config.privacy
        if privacy is None or self._plan.privacy is None:
            return math.inf
        if not more:
            return privacy.epsilon
        rounds = self._config.rounds + more
        return max(privacy.epsilon, largest_epsilon(self._plan.privacy.costs(rounds, rounds + 1), privacy.delta))

    def _prepare(self, cases: Sequence[Case]) -> list[CachedCase]:
        cache = CaseCache(self._data.cache, self._plan.preprocessing, self._plan.labels)
        return cache.prepare(cases, workers=min(MOST_WORKERS, os.cpu_count() or 1), progress=self._progress)
