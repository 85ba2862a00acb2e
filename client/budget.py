"""Who pays for a round: the site's ledger, within the site's own limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from client.ledger import Ledger
from client.patients import dataset_of
from client.policy import PolicyError
from client.privacy_account import Account, People, RoundEntry, SpendLine
from common.config import FederationConfig
from common.errors import ConfigError
from common.messages import ErrorCode
from common.privacy import Spend
from common.site_config import SiteConfig, SitePrivacy, load_site_config


class LedgerBudget:
    """A ``client.app.Budget``: what a hospital's own ledger and limit allow.

    Args:
        ledger: of the hospital.
        config: a federation with ``privacy``.
        people: whom the site trains on, and whom it scores models on.
        site: what the hospital allows; a path is a site file that is read anew for every round.
    """

    def __init__(self, ledger: Ledger, config: FederationConfig, people: People, site: SiteConfig | Path) -> None:
        if config.privacy is None:
            raise ValueError("a federation without privacy spends none")
        self._ledger = ledger
        self._config = config
        self._digest = config.digest()
        self._delta = config.privacy.delta
        self._people = people
        self._datasets = {purpose: dataset_of(patients) for purpose, patients in people.items()}
        self._site = site

    def spend(self, run: str, round: int, spends: Sequence[Spend]) -> float:
        """Writes down what a round is about to cost, if it costs anything, and waits until that is on disk.

        Returns:
            The epsilon, at the federation's delta, that this federation has cost any one patient so far, this round and
            all its earlier runs included. What other federations have cost counts for the limit, and stays here.

        Raises:
            PolicyError: the site's limit does not allow it; nothing was written.
            LedgerError: the ledger cannot be used.
        """
        if not spends:
            return _bounded(self._ledger.read().epsilon(self._people, self._delta, federation=self._digest))
        own = 0.0

        def decide(account: Account) -> RoundEntry:
            nonlocal own
            entry = self._decide(account, run, round, spends)
            own = _bounded(account.epsilon(self._people, self._delta, spends, self._digest))
            return entry

        self._ledger.spend(self._people, decide)
        return own

    def _decide(self, account: Account, run: str, round: int, spends: Sequence[Spend]) -> RoundEntry:
        limit = self._limit()
        # Those whom the round does not touch lose nothing, whatever they have spent before.
        used = {item.purpose: self._people[item.purpose] for item in spends}
        epsilon = account.epsilon(used, limit.delta, spends)
        most = math.inf if limit.max_epsilon is None else limit.max_epsilon
        if epsilon > most or math.isinf(epsilon):
            spent = account.epsilon(used, limit.delta)
            raise PolicyError(
                ErrorCode.PRIVACY_BUDGET,
                f"this round would bring a patient to epsilon {epsilon:.2f} at delta {limit.delta:g}; {spent:.2f} are "
                f"spent, and the site file allows {most:g} (privacy.max_epsilon); see fedvox-client ledger",
            )
        lines = [
            SpendLine(
                purpose=item.purpose,
                dataset=self._datasets[item.purpose],
                noise_multiplier=item.noise_multiplier,
                sample_rate=item.sample_rate,
                steps=item.steps,
            )
            for item in spends
        ]
        return RoundEntry(
            federation=self._config.name,
            digest=self._digest,
            run=run,
            round=round,
            spends=tuple(lines),
            epsilon=epsilon,
            max_epsilon=limit.max_epsilon,
            delta=limit.delta,
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
