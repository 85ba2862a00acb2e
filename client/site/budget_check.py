"""Whether the privacy that a hospital's patients have left pays for a whole federation, asked before it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.consent.site_config import SITE_FILE, SiteConfig, SitePrivacy, load_site_config
from client.ledger.account import Account, People, costs_of
from client.ledger.ledger import Ledger, LedgerError, Witness
from client.ledger.patient_identity import Patient, PatientIndex, PatientsError
from client.runner.local_site import SiteDataError, labelled_cases, people_of, split_site
from client.site.preflight_item import Item
from common.config.federation import FederationConfig
from common.errors import ConfigError, DataError
from common.formatting import counted
from common.privacy.accounting import Spend
from common.privacy.calibration import plan_privacy

_NOBODY: dict[str, Patient] = {"one": ("0" * 64,), "other": ("f" * 64,)}
NEW_PATIENTS: People = people_of(_NOBODY, ["one"], ["other"])
"""Patients who took part in nothing yet."""


@dataclass(frozen=True)
class Outlook:
    """What a federation would cost the patient who has spent the most.

    Attributes
    ----------
    spent, after
        epsilon at ``limit.delta`` so far, and with the whole federation.
    rounds_left
        of its ``rounds``, as many as the site's limit allows.
    """

    spent: float
    after: float
    rounds: int
    rounds_left: int
    limit: SitePrivacy

    @property
    def fits(self) -> bool:
        """Whether the limit allows all rounds."""
        return self.rounds_left >= self.rounds

    def as_values(self) -> dict[str, Any]:
        """For machines; an epsilon without bound is None."""
        spent, after = (value if math.isfinite(value) else None for value in (self.spent, self.after))
        values = {"spent": spent, "after": after, "rounds": self.rounds, "rounds_left": self.rounds_left}
        return values | {"max_epsilon": self.limit.max_epsilon, "delta": self.limit.delta}

    def __str__(self) -> str:
        if math.isinf(self.after):
            return (
                f"the ledger was recovered, and what it takes as spent leaves nothing at delta {self.limit.delta:g}: "
                "every round would be refused; see fedvox-client ledger"
            )
        whole = (
            f"the whole federation brings a patient from epsilon {self.spent:.2f} to {self.after:.2f} "
            f"at delta {self.limit.delta:g}"
        )
        if self.limit.max_epsilon is None:
            return f"{whole}; the site file sets no limit (privacy.max_epsilon)"
        if self.fits:
            return f"{whole}; {self.limit.max_epsilon:g} are allowed"
        return (
            f"{whole}, and the site file allows {self.limit.max_epsilon:g}: what is left lasts for {self.rounds_left} "
            f"of {counted(self.rounds, 'round')}, then this site stops"
        )


def outlook(config: FederationConfig, limit: SitePrivacy, account: Account, people: People) -> Outlook:
    """What a federation with ``privacy`` would cost these patients.

    Raises
    ------
    ValueError
        the federation has no ``privacy``.
    """
    if config.privacy is None:
        raise ValueError("a federation without privacy spends none")
    plan = plan_privacy(config.privacy, config.rounds, config.training.local_steps)
    spent = account.epsilon(people, limit.delta)
    after = account.epsilon(people, limit.delta, costs_of(plan, config.rounds))

    def costs(rounds: int) -> list[Spend]:
        return costs_of(plan, rounds, whole=rounds == config.rounds)

    left = config.rounds
    if math.isinf(after):
        left = 0
    elif limit.max_epsilon is not None and after > limit.max_epsilon:
        left = account.rounds_left(people, limit.delta, limit.max_epsilon, costs, config.rounds)
    return Outlook(spent, after, config.rounds, left, limit)


def find_people(config: FederationConfig, site: SiteConfig, name: str, data: Path, state: Path | None) -> People:
    """Who in a dataset folder would be trained on, and who scored on, as ``LocalSite`` has it.

    Raises
    ------
    DataError, PatientsError, SiteDataError
        the folder cannot be used.
    """
    cases = labelled_cases(data)
    patients = PatientIndex(state).identify(list(cases.values()))
    fraction = config.network.validation_fraction if config.network else 0.2
    train, validation = split_site(config, name, cases, site.validation_cases or fraction, patients)
    return people_of(patients, train, validation)


def check_privacy(state: Path, config: FederationConfig, name: str, data: Path, ledger: Path) -> Item:
    """Whether ledger and limit allow a differentially private federation.

    Parameters
    ----------
    state
        the site's state folder.
    config
        the federation.
    name
        of the site.
    data
        its dataset folder.
    ledger
        the hospital's.
    """
    try:
        site = load_site_config(state / SITE_FILE)
        account = Ledger(ledger, Witness(state)).read()
        found = outlook(config, site.privacy, account, find_people(config, site, name, data, state))
    except (LedgerError, ConfigError) as error:
        return Item("privacy", "error", str(error))
    except (DataError, PatientsError, SiteDataError) as error:
        return Item("privacy", "error", f"the patients cannot be told apart: {error}")
    return Item("privacy", "ok" if found.fits else "warning", str(found))
