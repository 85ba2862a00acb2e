"""The hospital's policy: checks and counts every task before it begins.

Decisions are read again for every task, so a pause or a withdrawal takes effect with the next one. If anything cannot
be read or is in doubt, the task is refused.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from client.consent.contract import Begun, Contract, UsedUpError
from client.consent.decisions import (
    DECISION_EVENTS,
    WITHDRAWN_EVENT,
    Approval,
    DecisionBook,
    Decisions,
    missing_stop,
)
from client.consent.hospital_file import HospitalFile
from client.consent.site_config import OUTSIDE_LIMITS, PAUSED_HERE, SITE_FILE, SiteConfig, load_site_config
from client.consent.terms import HospitalLimits, terms_of
from client.state_folder import APPROVALS_FILE, AUDIT_FILE
from common.audit import AuditLog
from common.config.federation import load_federation
from common.errors import FedvoxError
from common.protocol.messages import ErrorCode, Task

COUNTED_EVENT, GIVEN_BACK_EVENT, SENT_EVENT = "task_counted", "task_given_back", "sent"


class PolicyError(FedvoxError):
    """The hospital refuses a task; the server learns only the ``code``."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        self.code = code
        super().__init__(text)


class NotAsApprovedError(PolicyError):
    """What a person approved is not what is there now; only a person can decide what holds."""


class Policy:
    """Decides whether this hospital accepts a task. Every start and every task is checked here.

    Parameters
    ----------
    kit
        The site's kit, read again at every check; tasks of any other federation are refused.
    state
        The site's state folder, with its site file and decisions, which are read again at every check.
    consent
        The hospital's own file (``hospital_file``).

    Raises
    ------
    ConfigError, CertificateError
        A file of the kit is missing or cannot be read.
    """

    def __init__(self, kit: Path, state: Path, consent: Path) -> None:
        self._kit = kit
        self._state = state
        self._config = load_federation(kit / "federation.yaml")
        self._terms = terms_of(kit)
        self._book = DecisionBook(state, consent)
        self._hospital = HospitalFile(consent)
        self.audit = AuditLog(state / AUDIT_FILE, (*DECISION_EVENTS, COUNTED_EVENT, GIVEN_BACK_EVENT, SENT_EVENT))

    def check(self, digest: str) -> None:
        """Return if the site may now do a task of the federation with this digest.

        Raises
        ------
        PolicyError
            It may not.
        """
        with _refused():
            decisions, site = self._book.read(), load_site_config(self._state / SITE_FILE)
        self._check_stops(decisions, site)
        self._check_newest(decisions)
        if digest != self._terms.federation:
            raise PolicyError(
                ErrorCode.NOT_APPROVED,
                f"the server runs federation {digest[:12]}, but this kit is for {self._terms.federation[:12]}",
            )
        if violations := site.privacy.violations(self._config):
            raise PolicyError(ErrorCode.PRIVACY_REQUIRED, "; ".join(violations))
        if violations := site.limits.violations(self._config):
            raise PolicyError(ErrorCode.OUTSIDE_LIMITS, OUTSIDE_LIMITS + "; ".join(violations))
        with _refused():
            now = terms_of(self._kit)
        if now != self._terms:
            raise NotAsApprovedError(ErrorCode.NOT_APPROVED, f"{self._kit}: was changed while the site ran; restart it")
        if self.approval(decisions, site) is None:
            self._approve_automatically(site)

    def approval(self, decisions: Decisions, site: SiteConfig) -> Approval | None:
        """Return the approval that covers kit and limits as they are now; None if there is none of this federation.

        Raises
        ------
        PolicyError
            The federation was approved, but not as it is now.
        """
        found = decisions.approval(self._terms, automatic=False) or decisions.approval(self._terms, automatic=True)
        if found is None:
            return None
        by = f"approved by {found.user}, {found.time}"
        if changed := self._terms.differences(found.kit):
            raise NotAsApprovedError(
                ErrorCode.NOT_APPROVED,
                f"{self._kit}: {', '.join(changed)}: not as {by}; ask the coordinator why, review and approve again",
            )
        self._check_recorded(found)
        if found.automatic:
            # The site file itself approves, so its limits of today are recorded anew where they changed.
            return found if found.hospital == HospitalLimits.of(site) and self.is_automatic(site) else None
        if weaker := HospitalLimits.of(site).weaker_than(found.hospital):
            raise NotAsApprovedError(
                ErrorCode.NOT_APPROVED,
                f"{self._state / SITE_FILE}: {', '.join(weaker)}: weaker than when {by}, changed or gone; put them "
                "back, or review and approve again",
            )
        return found

    def begin(self, task: Task, attempt: str) -> Begun:
        """Count a task against its approval, before any work.

        Parameters
        ----------
        task
            The task; ``check`` has allowed it.
        attempt
            Name of the attempt, which counts once; empty for one that is always counted.

        Raises
        ------
        PolicyError
            The approval is used up, or the count cannot be written.
        """
        work = Begun(attempt=attempt or secrets.token_hex(16), train=task.train)
        with _refused():
            try:
                logged = self._logged_work()
                self._change(lambda contract: contract.with_known(logged).with_begun(work, self._config.rounds))
            except UsedUpError as error:
                raise PolicyError(ErrorCode.APPROVAL_USED_UP, str(error)) from None
        return work

    def give_back(self, work: Begun) -> None:
        """Take work out of the count that failed before anything was paid or sent."""
        with _refused():
            self._change(lambda contract: contract.without(work, self._config.rounds))

    def shares_personal_score(self) -> bool:
        """Return whether the site file lets the score of the site's personal model leave.

        Raises
        ------
        PolicyError
            The file cannot be read.
        """
        with _refused():
            return load_site_config(self._state / SITE_FILE).privacy.share_personal_score

    def contract(self) -> Contract:
        """Return what was begun of this federation.

        Raises
        ------
        PolicyError
            The hospital's file is missing or damaged.
        """
        with _refused():
            return self._hospital.contract(self._terms.federation, self._terms.site)

    def about(self, work: Begun) -> dict[str, Any]:
        """Return what the audit log says of counted work."""
        return {"digest": self._terms.federation, "site": self._terms.site, "attempt": work.attempt}

    def _logged_work(self) -> list[Begun]:
        """Return the work that the audit log has counted, also if the hospital's file is an older copy."""
        found: dict[str, Begun] = {}
        for entry in self.audit.kept():
            details = entry.details
            if (details.get("digest"), details.get("site")) != (self._terms.federation, self._terms.site):
                continue
            attempt = str(details.get("attempt"))
            if entry.event == COUNTED_EVENT:
                found[attempt] = Begun(attempt=attempt, train=details.get("train") is True)
            elif entry.event == GIVEN_BACK_EVENT:
                found.pop(attempt, None)
        return list(found.values())

    def _change(self, change: Callable[[Contract], Contract]) -> None:
        self._hospital.change(self._terms.federation, self._terms.site, change)

    def is_automatic(self, site: SiteConfig) -> bool:
        """Return whether the site file approves by itself; one that may have come with the kit does not."""
        return site.limits.automatic_approval and not self._is_in_kit()

    def _is_in_kit(self) -> bool:
        # Both: a kit may bring a link too.
        places = ((self._state.absolute(), self._kit.absolute()), (self._state.resolve(), self._kit.resolve()))
        return any(state.is_relative_to(kit) for state, kit in places)

    @staticmethod
    def _check_stops(decisions: Decisions, site: SiteConfig) -> None:
        if decisions.withdrawn is not None:
            raise PolicyError(
                ErrorCode.WITHDRAWN, f"withdrawn by {decisions.withdrawn.user}; fedvox-client approve ends it"
            )
        if decisions.paused is not None:
            raise PolicyError(ErrorCode.PAUSED, f"paused by {decisions.paused.user}; fedvox-client resume ends it")
        if site.paused:
            raise PolicyError(ErrorCode.PAUSED, PAUSED_HERE)

    def _check_newest(self, decisions: Decisions) -> None:
        """Check that no stop is missing in the decisions that the audit log has: they would be an older copy."""
        with _refused():
            missing = missing_stop(decisions, (entry.event for entry in self.audit.kept()))
        older = f"{self._state / APPROVALS_FILE}: is older than the {missing} in {AUDIT_FILE}"
        if missing == "withdrawal":
            raise NotAsApprovedError(ErrorCode.WITHDRAWN, f"{older}; approve again")
        if missing == "pause":
            raise NotAsApprovedError(ErrorCode.PAUSED, f"{older}; run fedvox-client resume")

    def _check_recorded(self, approval: Approval) -> None:
        """Check that the audit log has the approval, and no withdrawal after it."""
        with _refused():
            entries = self.audit.kept()
        after = False
        for entry in entries:
            after = after or entry.hash == approval.audit
            if after and entry.event == WITHDRAWN_EVENT:
                raise NotAsApprovedError(
                    ErrorCode.WITHDRAWN,
                    f"{self._state / APPROVALS_FILE}: is older than the withdrawal in {AUDIT_FILE}; approve again",
                )
        if not after:
            raise NotAsApprovedError(
                ErrorCode.REFUSED_BY_SITE,
                f"{self._state / AUDIT_FILE}: lacks the approval of {approval.time}, which {APPROVALS_FILE} has: it "
                "was replaced or removed, with what it proves; restore it from a backup, or review and approve again",
            )

    def _approve_automatically(self, site: SiteConfig) -> None:
        if not site.limits.automatic_approval:
            raise PolicyError(ErrorCode.NOT_APPROVED, "not approved; run fedvox-client review, then approve")
        if not self.is_automatic(site):
            raise PolicyError(
                ErrorCode.NOT_APPROVED,
                f"{self._state / SITE_FILE}: limits.automatic_approval does not count inside the kit, with which the "
                "file may have come; use a --state elsewhere, or run fedvox-client review, then approve",
            )
        with _refused():
            self._book.approve_automatically(self._config.name, self._terms, HospitalLimits.of(site))


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Refuse the task if something that must be read or written cannot be."""
    try:
        yield
    except PolicyError:
        raise
    except FedvoxError as error:
        raise NotAsApprovedError(ErrorCode.REFUSED_BY_SITE, str(error)) from None
