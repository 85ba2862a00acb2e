"""The hospital's decisions: approvals, pauses and withdrawals, in one file that is always replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import common
from client.consent.disclosure import digest_of_fields
from client.state_folder import APPROVALS_FILE, AUDIT_FILE
from common.audit import AuditLog
from common.config.federation import as_json
from common.errors import FedvoxError, OutputError
from common.plan.base import Frozen
from common.system.files import write_atomically
from common.system.locks import lock_file


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
    digest
        Digest of the federation's configuration.
    fields
        Digest of the list of what leaves the site.
    version
        Version of Fedvox.
    automatic
        Approved by the limits in the site file, not by a person.
    audit
        Hash of the entry in the audit log.
    """

    federation: str
    digest: str
    fields: str
    version: str
    automatic: bool
    audit: str


class Decisions(Frozen):
    """All decisions in force; ``paused`` and ``withdrawn`` are None unless they apply."""

    format: Literal[1] = 1
    approvals: tuple[Approval, ...] = ()
    paused: Decision | None = None
    withdrawn: Decision | None = None

    def approval(self, digest: str, *, automatic: bool) -> Approval | None:
        """Return a federation's latest approval that covers what the installed version sends; None without one."""
        for approval in reversed(self.approvals):
            found = (approval.digest, approval.fields, approval.automatic)
            if found == (digest, digest_of_fields(), automatic):
                return approval
        return None


class DecisionBook:
    """Reads and writes a site's decisions; also records every change in its audit log.

    Parameters
    ----------
    state
        The site's state folder; created if missing.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._file = state / APPROVALS_FILE
        self._audit = AuditLog(state / AUDIT_FILE)

    def read(self) -> Decisions:
        """Read the current decisions.

        Raises
        ------
        DecisionsError
            The file is damaged or cannot be read.
        """
        try:
            return Decisions.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return Decisions()
        except (OSError, ValidationError):
            raise DecisionsError(
                f"{self._file}: is damaged or cannot be read; move it away and approve again"
            ) from None

    def approve(self, federation: str, digest: str, user: str | None = None) -> Approval:
        """Record a person's approval of a federation; ends a withdrawal."""
        return self._approve(federation, digest, user, automatic=False)

    def approve_automatically(self, federation: str, digest: str) -> Approval:
        """Record the approval by the site file's limits, once however often this is called."""
        return self._approve(federation, digest, None, automatic=True)

    def pause(self, user: str | None = None) -> Decision:
        """Pause the site from the next task on."""
        return self._decide("paused", user, lambda now, decision: now.model_copy(update={"paused": decision}))

    def resume(self, user: str | None = None) -> Decision:
        """End a pause."""
        return self._decide("resumed", user, lambda now, _: now.model_copy(update={"paused": None}))

    def withdraw(self, user: str | None = None) -> Decision:
        """Withdraw every approval; only ``approve`` ends this, automatic approval does not."""
        changes: dict[str, Any] = {"approvals": ()}
        return self._decide(
            "withdrawn", user, lambda now, decision: now.model_copy(update=changes | {"withdrawn": decision})
        )

    def _approve(self, federation: str, digest: str, user: str | None, *, automatic: bool) -> Approval:
        with self._locked():
            decisions = self.read()
            if automatic and (known := decisions.approval(digest, automatic=True)):
                return known
            values = decision_of(user).model_dump() | {
                "federation": federation,
                "digest": digest,
                "fields": digest_of_fields(),
                "version": common.__version__,
                "automatic": automatic,
            }
            # Log first: an approval that is not recorded does not hold.
            event = "approved_automatically" if automatic else "approved"
            logged = {f"at_{name}" if name == "time" else name: value for name, value in values.items()}
            entry = self._audit.append(event, **logged)
            approval = Approval.model_validate(values | {"audit": entry.hash})
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
        write_atomically(self._file, as_json(decisions))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_file(self._state / f".{APPROVALS_FILE}.lock")
        except OSError as error:
            raise OutputError(f"{self._state}: cannot be written: {error.strerror or error}") from None
        with lock:
            yield


def decision_of(user: str | None) -> Decision:
    """Make a decision's record: the current time, the account, and the person's name or else the account's."""
    # Not getpass, which trusts environment variables.
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        account = f"uid {os.getuid()}"
    return Decision(time=datetime.now(UTC).isoformat(timespec="seconds"), user=user or account, account=account)
