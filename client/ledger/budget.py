"""Who pays for a round: the site's ledger, within the site's own limit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from client.consent.policy import PolicyError
from client.consent.site_config import SiteConfig, SitePrivacy, load_site_config
from client.ledger.account import Account, People, RoundEntry, SpendLine
from client.ledger.ledger import Ledger
from client.ledger.patient_identity import dataset_of
from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.privacy.accounting import Spend
from common.protocol.messages import ErrorCode

log = logging.getLogger("fedvox.client")


class LedgerBudget:
    """A ``client.runner.client_app.Budget``: what a hospital's own ledger and limit allow.

    Parameters
    ----------
    ledger
        of the hospital.
    config
        a federation with ``privacy``.
    people
        whom the site trains on, and whom it scores models on.
    site
        what the hospital allows; a path is a site file that is read anew for every round.
    attempt
        name of the attempt at the task that is under way, whose answer has not left: what it has paid for already, in
        a process that was killed, is not paid for again. Empty if there is none.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: FederationConfig,
        people: People,
        site: SiteConfig | Path,
        attempt: Callable[[], str] = str,
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

    def spend(self, run: str, round: int, spends: Sequence[Spend]) -> float:
        """Writes down what a round is about to cost, if it costs anything, and waits until that is on disk.

        Nothing is written down if the same attempt at the same task has paid the same for the same patients before.

        Returns
        -------
        float
            The epsilon, at the federation's delta, that this federation has cost any one patient so far, this round
            and all its earlier runs included. What other federations have cost counts for the limit, and stays here.

        Raises
        ------
        PolicyError
            the site's limit does not allow it; nothing was written.
        LedgerError
            the ledger cannot be used.
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
            # Those whom the round does not touch lose nothing, whatever they have spent before.
            used = {item.purpose: self._people[item.purpose] for item in spends}
            limit, epsilon = self._within_limit(account, used, upcoming)
            own = _bounded(account.epsilon(self._people, self._delta, upcoming, self._digest))
            if paid:
                log.info("round %d: paid for by an attempt that was broken off; nothing left the site then", round)
                return None
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
        """Whether exactly this is in the ledger: of this attempt, and for the same patients, who may have changed."""
        wanted = (attempt, self._digest, run, round, lines)
        return any(
            (item.entry.attempt, item.entry.digest, item.entry.run, item.entry.round, item.entry.spends) == wanted
            for item in account.rounds
        )

    def _within_limit(self, account: Account, used: People, upcoming: Sequence[Spend]) -> tuple[SitePrivacy, float]:
        """The site's limit, and the epsilon of the patients who are used, which it allows."""
        limit = self._limit()
        epsilon = account.epsilon(used, limit.delta, upcoming)
        most = math.inf if limit.max_epsilon is None else limit.max_epsilon
        if epsilon > most or math.isinf(epsilon):
            spent = account.epsilon(used, limit.delta)
            raise PolicyError(
                ErrorCode.PRIVACY_BUDGET,
                f"this round would bring a patient to epsilon {epsilon:.2f} at delta {limit.delta:g}; {spent:.2f} are "
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
            "the ledger was recovered, and what it takes as spent leaves nothing at this federation's delta; "
            "see fedvox-client ledger",
        )
    return epsilon
