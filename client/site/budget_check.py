"""Checks before a federation begins whether the patients' remaining privacy budget covers all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.consent.site_config import SITE_FILE, SiteConfig, SitePrivacy, load_site_config
from client.ledger.account import Account, People, people_of
from client.ledger.identifiers import Identifiers
from client.ledger.ledger import Ledger, LedgerError, Witness
from client.ledger.patient_identity import Patient, PatientIndex, PatientsError
from client.ledger.recognition import recognise
from client.runner.site_split import SiteDataError, labelled_cases, split_site
from client.site.preflight_item import Item
from common.config.federation import FederationConfig
from common.errors import ConfigError, DataError
from common.formatting import counted
from common.plan.privacy import PrivacyPlan, Spend

_EXAMPLE_PATIENTS: dict[str, Patient] = {"one": ("0" * 64,), "other": ("f" * 64,)}
NEW_PATIENTS: People = people_of(_EXAMPLE_PATIENTS, ["one"], ["other"])
"""Patients who have not taken part in a federation yet."""


@dataclass(frozen=True)
class Outlook:
    """Privacy cost of a federation for the patient who has spent the most.

    Attributes
    ----------
    spent, after
        Epsilon at ``limit.delta`` so far, and after the whole federation.
    rounds_left
        How many of the ``rounds`` the site's limit allows.
    approved
        Epsilon and delta of the federation alone, which an approval covers.
    """

    spent: float
    after: float
    rounds: int
    rounds_left: int
    limit: SitePrivacy
    approved: tuple[float, float]

    @property
    def fits(self) -> bool:
        """Whether the limit allows all rounds."""
        return self.rounds_left >= self.rounds

    def as_values(self) -> dict[str, Any]:
        """Return the values for JSON; an unbounded epsilon is None."""
        spent, after = (value if math.isfinite(value) else None for value in (self.spent, self.after))
        values = {"spent": spent, "after": after, "rounds": self.rounds, "rounds_left": self.rounds_left}
        return values | {"max_epsilon": self.limit.max_epsilon, "delta": self.limit.delta}

    def __str__(self) -> str:
        if math.isinf(self.after):
            return (
                f"the ledger was recovered, and the assumed spending leaves nothing at delta {self.limit.delta:g}: "
                "every round would be refused; see fedvox-client ledger"
            )
        whole = (
            f"the whole federation brings a patient from epsilon {self.spent:.2f} to {self.after:.2f} "
            f"at delta {self.limit.delta:g}"
        )
        if self.limit.max_epsilon is None:
            epsilon, delta = self.approved
            return (
                f"{whole}; the site file sets no limit over all federations (privacy.max_epsilon), so that only "
                f"what is approved for each limits it: epsilon {epsilon:g} at delta {delta:g} for this one"
            )
        if self.fits:
            return f"{whole}; the limit is {self.limit.max_epsilon:g}"
        return (
            f"{whole}, and the site file allows {self.limit.max_epsilon:g}: the rest lasts for {self.rounds_left} "
            f"of {counted(self.rounds, 'round')}, then this site stops"
        )


def outlook(
    config: FederationConfig, privacy: PrivacyPlan, limit: SitePrivacy, account: Account, people: People
) -> Outlook:
    """Return what a federation with ``privacy`` would cost these patients."""
    spent = account.epsilon(people, limit.delta)
    after = account.epsilon(people, limit.delta, privacy.costs(config.rounds, config.rounds + 1))

    def costs(rounds: int) -> list[Spend]:
        return privacy.costs(rounds, rounds + (rounds == config.rounds))

    left = config.rounds
    if math.isinf(after):
        left = 0
    elif limit.max_epsilon is not None and after > limit.max_epsilon:
        left = account.rounds_left(people, limit.delta, limit.max_epsilon, costs, config.rounds)
    approved = (config.privacy.epsilon, config.privacy.delta) if config.privacy else (math.inf, limit.delta)
    return Outlook(spent, after, config.rounds, left, limit, approved)


def find_people(
    config: FederationConfig, site: SiteConfig, name: str, data: Path, state: Path | None, ledger: Ledger
) -> People:
    """Return the patients of a dataset folder, split for training and validation as in ``LocalSite``.

    Raises
    ------
    DataError, PatientsError, SiteDataError
        If the folder cannot be used.
    LedgerError
        The ledger's secret cannot be used.
    """
    cases = labelled_cases(data, terms=site.data_terms)
    patients = PatientIndex(state, Identifiers(ledger, may_make=False).mark).identify(list(cases.values()))
    fraction = config.network.validation_fraction if config.network else 0.2
    train, validation = split_site(config, name, cases, site.validation_cases or fraction, patients)
    return people_of(patients, train, validation)


def check_privacy(
    state: Path, config: FederationConfig, privacy: PrivacyPlan, name: str, data: Path, ledger: Path
) -> Item:
    """Check whether ledger and limit allow a differentially private federation.

    Parameters
    ----------
    state
        The site's state folder.
    config
        The federation.
    privacy
        Its privacy plan.
    name
        Name of the site.
    data
        Dataset folder of the site.
    ledger
        The hospital's ledger.
    """
    try:
        site = load_site_config(state / SITE_FILE)
        opened = Ledger(ledger, Witness(state))
        account = opened.read()
        people = find_people(config, site, name, data, state, opened)
        found = outlook(config, privacy, site.privacy, account, people)
    except (LedgerError, ConfigError) as error:
        return Item("privacy", "error", str(error))
    except (DataError, PatientsError, SiteDataError) as error:
        return Item("privacy", "error", f"the patients cannot be told apart: {error}")
    known = recognise(account, [*people["training"], *people["validation"]])
    text = f"{found}; {known}" if str(known) else str(found)
    is_good = found.fits and site.privacy.max_epsilon is not None and not known.needs_a_look
    return Item("privacy", "ok" if is_good else "warning", text)
