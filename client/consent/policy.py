"""The hospital's policy: checks every task before it begins and records every reply before it leaves.

Decisions are read again for every task, so a pause or a withdrawal takes effect with the next one. If anything cannot
be read or is in doubt, the task is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from client.consent.contract import Begun, Contract, UsedUpError
from client.consent.decisions import (
    APPROVED_EVENT,
    AUTOMATIC_EVENT,
    WITHDRAWN_EVENT,
    Approval,
    DecisionBook,
    Decisions,
)
from client.consent.disclosure import fields_that_leave
from client.consent.hospital_file import HospitalFile
from client.consent.site_config import SITE_FILE, SiteConfig, load_site_config
from client.consent.terms import HospitalLimits, terms_of
from client.state_folder import APPROVALS_FILE, AUDIT_FILE
from common.audit import AuditError, AuditLog
from common.config.federation import load_federation
from common.errors import FedvoxError, ProtocolError
from common.protocol.codec import Answer, unpack_answer, unpack_question
from common.protocol.manifest import manifest_of
from common.protocol.messages import ErrorCode, Failure, Result, Task

log = logging.getLogger("fedvox.client")

MAX_TEXT = 200


class PolicyError(FedvoxError):
    """The hospital refuses a task; the server learns only the ``code``."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        self.code = code
        super().__init__(text)


class HeldBackError(PolicyError):
    """A reply holds something that may not leave; retrying does not help."""


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
        self.audit = AuditLog(state / AUDIT_FILE, (APPROVED_EVENT, AUTOMATIC_EVENT, WITHDRAWN_EVENT))

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
        if digest != self._terms.federation:
            raise PolicyError(
                ErrorCode.NOT_APPROVED,
                f"the server runs federation {digest[:12]}, but this kit is for {self._terms.federation[:12]}",
            )
        if violations := site.privacy.violations(self._config):
            raise PolicyError(ErrorCode.PRIVACY_REQUIRED, "; ".join(violations))
        if violations := site.limits.violations(self._config):
            raise PolicyError(ErrorCode.OUTSIDE_LIMITS, f"outside the site file's limits: {'; '.join(violations)}")
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
                f"{self._state / SITE_FILE}: {', '.join(weaker)}: weaker than when {by}, or gone; put the limits back, "
                "or review and approve again",
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
                self._change(lambda contract: contract.with_begun(work, self._config.rounds))
            except UsedUpError as error:
                raise PolicyError(ErrorCode.APPROVAL_USED_UP, str(error)) from None
        return work

    def give_back(self, work: Begun) -> None:
        """Take work out of the count that failed before anything was paid or sent."""
        with _refused():
            self._change(lambda contract: contract.without(work, self._config.rounds))

    def contract(self) -> Contract:
        """Return what was begun of this federation.

        Raises
        ------
        HospitalFileError
            The hospital's file is missing or damaged.
        """
        return self._hospital.contract(self._terms.federation, self._terms.site)

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
            raise PolicyError(ErrorCode.PAUSED, "paused in the site file; set paused: false to go on")

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


class TaskGuard:
    """Stands between server and site: checks the policy before a task, and records what leaves after it.

    Parameters
    ----------
    policy
        This hospital's policy.
    audit
        Log of tasks and replies, normally ``audit.jsonl`` in the site's state folder.
    attempt
        Returns the name of the current attempt, as for ``client.ledger.budget``; empty without one.
    """

    def __init__(self, policy: Policy, audit: AuditLog, attempt: Callable[[], str] = str) -> None:
        self._policy = policy
        self._audit = audit
        self._attempt = attempt

    def check(self, digest: str) -> None:
        """Return if the task may be done; record the decision either way.

        Raises
        ------
        PolicyError
            It may not, or the decision could not be recorded.
        """
        try:
            self._policy.check(digest)
        except PolicyError as error:
            self._log("task_refused", digest=digest[:MAX_TEXT], code=_code_word(error.code))
            raise
        self._log("task_accepted", digest=digest)

    def begin(self, task: Task) -> Callable[[], None]:
        """Count a task against its approval, before any work.

        Returns
        -------
        Callable[[], None]
            Takes it out of the count; for work that failed before anything was paid or sent.

        Raises
        ------
        PolicyError
            The approval is used up, or the count cannot be written.
        """
        about = {"run": task.run[:MAX_TEXT], "round": task.round, "train": task.train}
        try:
            work = self._policy.begin(task, self._attempt())
        except PolicyError as error:
            self._log("task_refused", **about, code=_code_word(error.code))
            raise

        def give_back() -> None:
            try:
                self._policy.give_back(work)
            except PolicyError as error:
                log.error("the failed task stays counted: %s", error)

        try:
            self._log("task_counted", **about, attempt=work.attempt)
        except PolicyError:
            give_back()
            raise
        return give_back

    def record(self, kind: str, question: str, answer: str, update_bytes: int = 0) -> None:
        """Record exactly what an answer holds; an exception keeps it from leaving.

        Parameters
        ----------
        kind
            Kind of work: ``hello``, ``train`` or ``evaluate``.
        question
            The server's message, as received.
        answer
            The answer, as it will be sent.
        update_bytes
            Size of the update sent with it; 0 without one.

        Raises
        ------
        HeldBackError
            The answer holds something that may not leave.
        PolicyError
            The log cannot be written.
        """
        about: dict[str, Any] = {"kind": kind, **_round_of(question)}
        try:
            content = _listed(answer)
        except ProtocolError as error:
            self._log("held_back", **about, reason=str(error)[:MAX_TEXT])
            raise HeldBackError(ErrorCode.REFUSED_BY_SITE, f"held back, on no list: {error}") from None
        update = content.update if isinstance(content, Result) else None
        if (update is None) != (update_bytes == 0):
            self._log("held_back", **about, reason="an update without its digest, or a digest without its update")
            raise HeldBackError(ErrorCode.REFUSED_BY_SITE, "the answer does not match its update")
        if isinstance(content, Failure):
            self._log("sent", **about, bytes=0, error=_code_word(content.code), reason=content.reason)
            return
        manifest = manifest_of(answer, update_bytes)
        self._log("sent", **about, **manifest, epsilon=manifest["fields"].get("epsilon"))

    def _log(self, event: str, **details: Any) -> None:
        try:
            self._audit.append(event, **details)
        except AuditError as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None


def open_guard(kit: Path, state: Path, consent: Path, attempt: Callable[[], str] = str) -> TaskGuard:
    """Make the guard of a site from its kit, its state folder, the hospital's own file, and the current attempt."""
    policy = Policy(kit, state, consent)
    return TaskGuard(policy, policy.audit, attempt)


def _round_of(question: str) -> dict[str, Any]:
    """Return run and round as the server named them; empty if it did not."""
    try:
        asked = unpack_question(question)
    except ProtocolError:
        return {}
    return {"run": asked.run} | ({"round": asked.round} if isinstance(asked, Task) else {})


def _listed(answer: str) -> Answer:
    """Decode an answer that holds only what the consent document lists.

    Raises
    ------
    ProtocolError
        It holds anything else, or a value of the wrong type.
    """
    content = unpack_answer(answer)
    listed = {field.name for field in fields_that_leave() if field.message == type(content).__name__}
    names = set(json.loads(answer)) - {"format", "kind"}
    if strangers := (names | {field.name for field in fields(content)}) - listed:
        raise ProtocolError(", ".join(sorted(strangers)))
    return content


def _code_word(code: ErrorCode) -> str:
    return code.name.lower().replace("_", "-")
