"""The hospital's decisions: approvals, pauses and withdrawals, in one file that is always replaced as a whole.

The file is sealed with the hospital's own key (``hospital_file``). One that somebody else wrote counts for nothing.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import pwd
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import common
from client.consent.contract import Contract
from client.consent.hospital_file import HospitalFile, HospitalFileError
from client.consent.terms import HospitalLimits, KitTerms
from client.state_folder import APPROVALS_FILE, AUDIT_FILE
from common.audit import AuditLog
from common.config.federation import as_json
from common.errors import FedvoxError, OutputError
from common.plan.base import Frozen
from common.system.files import write_atomically
from common.system.locks import lock_file

APPROVED_EVENT, AUTOMATIC_EVENT, WITHDRAWN_EVENT = "approved", "approved_automatically", "withdrawn"
PAUSED_EVENT, RESUMED_EVENT = "paused", "resumed"
DECISION_EVENTS = (APPROVED_EVENT, AUTOMATIC_EVENT, WITHDRAWN_EVENT, PAUSED_EVENT, RESUMED_EVENT)
"""What decides whether an approval in the file holds."""
_AGAIN = "move it away, review the federation and approve it again"


class DecisionsError(FedvoxError):
    """The file of decisions cannot be read, so nothing counts as approved."""


class Decision(Frozen):
    """Who decided something, and when.

    Attributes
    ----------
    user
        The name that the person gave.
    account
        The operating system's account name.
    """

    time: str
    user: str
    account: str


class Approval(Decision):
    """One approved federation.

    Attributes
    ----------
    federation
        Its name.
    kit
        What the kit was when it was approved.
    hospital
        The hospital's own limits at that time.
    version
        Version of Fedvox.
    automatic
        Approved by the limits in the site file, not by a person.
    audit
        Hash of the entry in the audit log.
    """

    federation: str
    kit: KitTerms
    hospital: HospitalLimits
    version: str
    automatic: bool
    audit: str


class Decisions(Frozen):
    """All decisions in force; ``paused`` and ``withdrawn`` are None unless they apply."""

    format: Literal[2] = 2
    approvals: tuple[Approval, ...] = ()
    paused: Decision | None = None
    withdrawn: Decision | None = None

    def approval(self, kit: KitTerms, *, automatic: bool) -> Approval | None:
        """Return the latest approval of a kit's federation that covers what this version sends; None without one."""
        for approval in reversed(self.approvals):
            found = (approval.kit.federation, approval.kit.fields, approval.automatic)
            if found == (kit.federation, kit.fields, automatic):
                return approval
        return None


class _Sealed(Frozen):
    """What the file holds; ``seal`` is the HMAC of ``decisions``."""

    decisions: Decisions
    seal: str


class DecisionBook:
    """Reads and writes a site's decisions; also records every change in its audit log.

    Parameters
    ----------
    state
        The site's state folder; created if missing.
    consent
        The hospital's own file (``hospital_file``), made with the first decision.
    """

    def __init__(self, state: Path, consent: Path) -> None:
        self._state = state
        self._hospital = HospitalFile(consent)
        self._file = state / APPROVALS_FILE
        self._audit = AuditLog(state / AUDIT_FILE)

    def read(self) -> Decisions:
        """Read the current decisions.

        Raises
        ------
        DecisionsError
            The file is damaged, cannot be read, or was not written at this hospital.
        """
        try:
            content = self._file.read_bytes()
            sealed = _Sealed.model_validate_json(content)
        except FileNotFoundError:
            return Decisions()
        except (OSError, ValidationError):
            problem = "is damaged, cannot be read or comes from an earlier version"
            raise DecisionsError(f"{self._file}: {problem}; {_AGAIN}") from None
        try:
            seal = self._hospital.seal(_sealed_content(sealed.decisions))
        except HospitalFileError as error:
            raise DecisionsError(f"{self._file}: does not count: {error}; put it back, or: {_AGAIN}") from None
        if not hmac.compare_digest(seal, sealed.seal):
            raise DecisionsError(
                f"{self._file}: was not written at this hospital: its seal does not fit the key in "
                f"{self._hospital.path}; refuse a kit that came with it; else: {_AGAIN}"
            )
        return sealed.decisions

    def approve(self, federation: str, kit: KitTerms, hospital: HospitalLimits, user: str | None = None) -> Approval:
        """Record a person's approval of a federation; ends a withdrawal."""
        return self._approve(federation, kit, hospital, user, automatic=False)

    def approve_automatically(self, federation: str, kit: KitTerms, hospital: HospitalLimits) -> Approval:
        """Record the approval by the site file's limits, once however often this is called with them."""
        return self._approve(federation, kit, hospital, None, automatic=True)

    def allow_more(self, kit: KitTerms, rounds: int, user: str | None = None) -> Contract:
        """Record that a person allows ``rounds`` more rounds of an approved federation."""
        with self._locked():
            decision = decision_of(user)
            # Log first, as for an approval.
            who = {"at_time": decision.time, "user": decision.user, "account": decision.account}
            self._audit.append("more_rounds_allowed", **who, digest=kit.federation, site=kit.site, rounds=rounds)
            return self._hospital.change(kit.federation, kit.site, lambda contract: contract.with_more(rounds))

    def pause(self, user: str | None = None) -> Decision:
        """Pause the site from the next task on."""
        return self._decide(PAUSED_EVENT, user, lambda now, decision: now.model_copy(update={"paused": decision}))

    def resume(self, user: str | None = None) -> Decision:
        """End a pause."""
        return self._decide(RESUMED_EVENT, user, lambda now, _: now.model_copy(update={"paused": None}))

    def withdraw(self, user: str | None = None) -> Decision:
        """Withdraw every approval; only ``approve`` ends this, automatic approval does not."""
        changes: dict[str, Any] = {"approvals": ()}
        return self._decide(
            WITHDRAWN_EVENT, user, lambda now, decision: now.model_copy(update=changes | {"withdrawn": decision})
        )

    def _approve(
        self, federation: str, kit: KitTerms, hospital: HospitalLimits, user: str | None, *, automatic: bool
    ) -> Approval:
        with self._locked():
            decisions = self.read()
            known = decisions.approval(kit, automatic=True) if automatic else None
            if known is not None and (known.kit, known.hospital) == (kit, hospital):
                return known
            decision = decision_of(user)
            about = {
                "federation": federation,
                "kit": kit.model_dump(mode="json"),
                "hospital": hospital.model_dump(mode="json"),
                "version": common.__version__,
                "automatic": automatic,
            }
            # Log first: an approval that is not recorded does not hold.
            event = AUTOMATIC_EVENT if automatic else APPROVED_EVENT
            who = {"at_time": decision.time, "user": decision.user, "account": decision.account}
            entry = self._audit.append(event, **who, digest=kit.federation, **about)
            own = {"kit": kit, "hospital": hospital, "audit": entry.hash}
            approval = Approval.model_validate(decision.model_dump() | about | own)
            changes: dict[str, Any] = {"approvals": (*decisions.approvals, approval)}
            if not automatic:
                changes["withdrawn"] = None
            self._write(decisions.model_copy(update=changes))
            return approval

    def _decide(self, event: str, user: str | None, change: Callable[[Decisions, Decision], Decisions]) -> Decision:
        with self._locked():
            decision = decision_of(user)
            # Log last: stopping must work even if the log cannot be written.
            self._write(change(self.read(), decision))
            self._audit.append(event, user=decision.user, account=decision.account)
            return decision

    def _write(self, decisions: Decisions) -> None:
        self._hospital.make_key()
        sealed = _Sealed(decisions=decisions, seal=self._hospital.seal(_sealed_content(decisions)))
        write_atomically(self._file, as_json(sealed))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_file(self._state / f".{APPROVALS_FILE}.lock")
        except OSError as error:
            raise OutputError(f"{self._state}: cannot be written: {error.strerror or error}") from None
        with lock:
            yield


def missing_stop(decisions: Decisions, events: Iterable[str]) -> Literal["withdrawal", "pause"] | None:
    """Return the stop that the audit log's events have in force and the decisions lack: they are an older copy."""
    last = {}
    for event in events:
        if event in (WITHDRAWN_EVENT, APPROVED_EVENT):
            last["withdrawal"] = event
        elif event in (PAUSED_EVENT, RESUMED_EVENT):
            last["pause"] = event
    if last.get("withdrawal") == WITHDRAWN_EVENT and decisions.withdrawn is None:
        return "withdrawal"
    return "pause" if last.get("pause") == PAUSED_EVENT and decisions.paused is None else None


def decision_of(user: str | None) -> Decision:
    """Make a decision's record: the current time, the account, and the person's name or else the account's."""
    # Not getpass, which trusts environment variables.
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        account = f"uid {os.getuid()}"
    return Decision(time=datetime.now(UTC).isoformat(timespec="seconds"), user=user or account, account=account)


def _sealed_content(decisions: Decisions) -> bytes:
    content = json.dumps(decisions.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return f"fedvox decisions\n{content}".encode()
