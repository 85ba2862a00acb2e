"""Pays for rounds from the site's ledger, within the site's own limit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from client.consent.contract import ALLOWS_MORE
from client.consent.policy import PolicyError
from client.consent.site_config import SiteConfig, SitePrivacy, load_site_config
from client.ledger.account import Account, People, RoundEntry, SpendLine
from client.ledger.ledger import Ledger
from client.ledger.patient_identity import dataset_of
from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.plan.privacy import Spend
from common.protocol.messages import ErrorCode

log = logging.getLogger("fedvox.client")


class LedgerBudget:
    """A ``client.runner.client_app.Budget`` backed by the hospital's ledger and limit.

    Parameters
    ----------
    ledger
        The hospital's ledger.
    config
        A federation with ``privacy``.
    people
        The patients that the site trains on, and those it scores models on.
    site
        What the hospital allows; a path is a site file that is read again for every round.
    attempt
        Returns the name of the current attempt, whose answer has not left; empty without one. What the attempt paid
        before a crash is not paid again.
    approved
        Returns the largest epsilon, at the federation's delta, that this federation may cost any patient.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: FederationConfig,
        people: People,
        site: SiteConfig | Path,
        attempt: Callable[[], str] = str,
        approved: Callable[[], float] = lambda: math.inf,
    ) -> None:
        if config.privacy is None:
            raise ValueError("a federation without privacy spends none")
        self._ledger = ledger
        self._config = config
        self._digest = config.digest()
        self._delta = config.privacy.delta
        self._people = people
        self._datasets = {purpose: dataset_of(patients) for purpose, patients in people.items()}
        self._site = site
        self._attempt = attempt
        self._approved = approved

    def spend(self, run: str, round: int, spends: Sequence[Spend]) -> float:
        """Record the cost of a round, if any, and wait until it is on disk.

        Nothing is recorded if the same attempt has already paid the same for the same patients.

        Returns
        -------
        float
            Largest epsilon, at the federation's delta, that this federation has cost any one patient so far, including
            this round and all its earlier runs. The cost of other federations counts towards the limit but is not
            disclosed.

        Raises
        ------
        PolicyError
            The site's limit does not allow the round; nothing was recorded.
        LedgerError
            The ledger cannot be used.
        """
        if not spends:
            return _bounded(self._ledger.read().epsilon(self._people, self._delta, federation=self._digest))
        own = 0.0

        def decide(account: Account) -> RoundEntry | None:
            nonlocal own
            lines = self._lines(spends)
            attempt = self._attempt()
            paid = attempt != "" and self._has_paid(account, attempt, run, round, lines)
            upcoming = [] if paid else spends
            # Patients that the round does not use lose nothing, whatever they have spent before.
            used = {item.purpose: self._people[item.purpose] for item in spends}
            limit, epsilon = self._within_limit(account, used, upcoming)
            own = _bounded(account.epsilon(self._people, self._delta, upcoming, self._digest))
            if paid:
                log.info("round %d: already paid for by an interrupted attempt, of which nothing left the site", round)
                return None
            self._check_approved(account, upcoming)
            return RoundEntry(
                federation=self._config.name,
                digest=self._digest,
                run=run,
                round=round,
                spends=lines,
                epsilon=epsilon,
                max_epsilon=limit.max_epsilon,
                delta=limit.delta,
                attempt=attempt,
            )

        self._ledger.spend(self._people, decide)
        return own

    def _has_paid(self, account: Account, attempt: str, run: str, round: int, lines: tuple[SpendLine, ...]) -> bool:
        """Return whether this attempt has paid exactly this; the dataset's patients may have changed since."""
        wanted = (attempt, self._digest, run, round, lines)
        return any(
            (item.entry.attempt, item.entry.digest, item.entry.run, item.entry.round, item.entry.spends) == wanted
            for item in account.rounds
        )

    def _check_approved(self, account: Account, upcoming: Sequence[Spend]) -> None:
        """Check that the federation costs no patient more than was approved, also where its count was lost."""
        # What a recovery declares as spent was not necessarily spent on this federation.
        recorded = replace(account, recoveries=())
        epsilon = recorded.epsilon(self._people, self._delta, upcoming, self._digest)
        most = self._approved()
        if epsilon > most:
            raise PolicyError(
                ErrorCode.APPROVAL_USED_UP,
                f"this round would bring what the federation costs a patient to epsilon {epsilon:.2f} at delta "
                f"{self._delta:g}, and {most:.2f} is approved; {ALLOWS_MORE}",
            )

    def _within_limit(self, account: Account, used: People, upcoming: Sequence[Spend]) -> tuple[SitePrivacy, float]:
        """Return the site's limit, and the epsilon of the patients used, which is within it."""
        limit = self._limit()
        epsilon = account.epsilon(used, limit.delta, upcoming)
        most = math.inf if limit.max_epsilon is None else limit.max_epsilon
        if epsilon > most or math.isinf(epsilon):
            spent = account.epsilon(used, limit.delta)
            raise PolicyError(
                ErrorCode.PRIVACY_BUDGET,
                f"this round would bring a patient to epsilon {epsilon:.2f} at delta {limit.delta:g}; {spent:.2f} is "
                f"spent, and the site file allows {most:g} (privacy.max_epsilon); see fedvox-client ledger",
            )
        return limit, epsilon

    def _lines(self, spends: Sequence[Spend]) -> tuple[SpendLine, ...]:
        return tuple(
            SpendLine(
                purpose=item.purpose,
                dataset=self._datasets[item.purpose],
                noise_multiplier=item.noise_multiplier,
                sample_rate=item.sample_rate,
                steps=item.steps,
            )
            for item in spends
        )

    def _limit(self) -> SitePrivacy:
        try:
            return (load_site_config(self._site) if isinstance(self._site, Path) else self._site).privacy
        except ConfigError as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None


def _bounded(epsilon: float) -> float:
    if math.isinf(epsilon):
        raise PolicyError(
            ErrorCode.PRIVACY_BUDGET,
            "the ledger was recovered, and what was declared as spent leaves nothing at this federation's delta; "
            "see fedvox-client ledger",
        )
    return epsilon
