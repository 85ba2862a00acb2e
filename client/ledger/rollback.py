"""Notices that a site's ledger or audit log was set back to an older copy, with the server's help.

Each reply names the last entry that the site wrote to its ledger, and the last in its audit log. The server hands both
back with the next hello or task. Where the site's files lack such an entry, they are older than what the site has told,
even if they fit together and a whole machine was restored. Then nothing is done until a person has looked
(``fedvox-client ledger --recover``), or until the right files are back.

The server cannot prove what it says. If it lies, it stops the site, as it also could by sending no task; what then
counts as spent is a person's decision.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from client.consent.decisions import decision_of
from client.state_folder import AUDIT_FILE
from common.audit import AuditError, AuditLog, Entry, head_hash, read_entries
from common.errors import DamagedFileError, FedvoxError
from common.plan.base import Frozen
from common.protocol.messages import ErrorCode, Failure, Hello, Result, SiteInfo, Task
from common.system.files import PRIVATE
from common.system.state_file import read_sealed, write_sealed
from common.weights.digest import Digest

if TYPE_CHECKING:
    from client.ledger.ledger import Ledger

ROLLED_BACK, SETTLED = "rolled_back", "rollback_settled"
_REMEDY = "restore it from a backup, or remove it: the decisions to keep the ledger are then asked for again"


class RolledBackError(FedvoxError):
    """The site's files are older than what it has told the server; the server learns only the code."""

    code = ErrorCode.ROLLED_BACK


class Claim(Frozen):
    """What the server says that this site reported last.

    Attributes
    ----------
    epsilon, delta
        Epsilon spent on its federation, at the federation's delta.
    ledger, audit
        Hashes of the last entry in the ledger and in the audit log.
    """

    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    delta: float | None = None
    ledger: Digest | None = None
    audit: Digest | None = None

    def __str__(self) -> str:
        spent = "" if self.epsilon is None else f", and epsilon {self.epsilon:.3g} at delta {self.delta or 0:g}"
        entries = [
            f"entry {digest[:12]} of the {name}"
            for name, digest in (("ledger", self.ledger), ("audit log", self.audit))
            if digest is not None
        ]
        return f"{' and '.join(entries)}{spent}"


class RollbackGuard:
    """Compares a site's files with what the server says they held, and reports what they hold now.

    Parameters
    ----------
    state
        The site's state folder.
    ledger
        The hospital's ledger.
    delta
        The federation's delta; None without differential privacy.
    """

    def __init__(self, state: Path, ledger: Ledger, delta: float | None) -> None:
        self._state = state
        self._ledger = ledger
        self._delta = delta

    def check(self, question: Hello | Task) -> None:
        """Return if the files hold everything that the server, now or earlier, said they held.

        Raises
        ------
        RolledBackError
            They do not.
        LedgerError
            The ledger cannot be used.
        AuditError
            The audit log cannot be used.
        """
        audit = _entries(self._state)
        before = _recorded(audit)
        if before is not None:
            self._require(before, audit)
        epsilon = None if math.isnan(question.epsilon_seen) else question.epsilon_seen
        claim = Claim(epsilon=epsilon, delta=self._delta, ledger=question.ledger_seen, audit=question.audit_seen)
        try:
            self._require(claim, audit)
        except RolledBackError:
            AuditLog(self._state / AUDIT_FILE).append(ROLLED_BACK, **claim.model_dump(mode="json"))
            raise

    def stamp(self, answer: SiteInfo | Result | Failure) -> SiteInfo | Result | Failure:
        """Return the answer with the last entries of ledger and audit log.

        Raises
        ------
        LedgerError, AuditError
            They cannot be read.
        """
        from client.ledger.ledger import Witness

        if isinstance(answer, Failure):
            return answer
        ledger = next((note.hash for note in Witness(self._state).seen()), None)
        return replace(answer, ledger_head=ledger, audit_head=head_hash(self._state / AUDIT_FILE))

    def _require(self, claim: Claim, audit: list[Entry]) -> None:
        if lacking := _lacking(claim, audit, self._ledger):
            raise RolledBackError(
                f"{' and '.join(lacking)}: older than what this site has reported ({claim}): restored from an old "
                "copy, or the server is wrong. Put the newest files back, or have a person decide: "
                "fedvox-client ledger --recover --help"
            )


def kept_file(ledger: Path) -> Path:
    """Return the path of the decisions to keep a ledger although the server has seen more."""
    return ledger.with_name(f"{ledger.name}.kept")


def recorded_claim(state: Path) -> Claim | None:
    """Return the last claim that the site's files did not meet, also if they do by now; None if there was none.

    Raises
    ------
    AuditError
        The audit log cannot be read.
    """
    return _recorded(_entries(state))


def pending_claim(state: Path, ledger: Ledger) -> tuple[Claim, list[str]] | None:
    """Return the claim that stops the site, and the files that lack something; None if nothing does.

    Raises
    ------
    AuditError
        The audit log cannot be read.
    """
    from client.ledger.ledger import LedgerError

    audit = _entries(state)
    claim = _recorded(audit)
    if claim is None:
        return None
    try:
        lacking = _lacking(claim, audit, ledger)
    except LedgerError:
        lacking = [str(ledger.path)]
    return (claim, lacking) if lacking else None


def settle(state: Path, ledger: Ledger, claim: Claim, reason: str, user: str | None, *, is_kept: bool) -> None:
    """Record that a person has looked, so that the site goes on.

    The server may name the same entry to the next kit, whose state folder is new. A recovered ledger supersedes it; if
    the ledger is kept, a file beside it says so.

    Parameters
    ----------
    state
        The site's state folder.
    ledger
        The hospital's ledger.
    claim
        What the person has looked at.
    reason
        Reason in the person's words.
    user
        The person's name; None uses the account's.
    is_kept
        Whether the ledger stays as it is, so that the claim's epsilon does not count.

    Raises
    ------
    AuditError
        The audit log cannot be written.
    LedgerError
        The file beside the ledger is damaged, or its folder cannot be written.
    OutputError
        The file beside the ledger cannot be written.
    """
    who = decision_of(user)
    if is_kept and claim.ledger is not None and not _holds(ledger, claim.ledger):
        with ledger.locked():
            kept = _kept(ledger) | {claim.ledger: who.model_dump() | {"reason": reason}}
            write_sealed(kept_file(ledger.path), kept, mode=PRIVATE)
    about = claim.model_dump(mode="json") | {"user": who.user, "account": who.account, "reason": reason}
    AuditLog(state / AUDIT_FILE).append(SETTLED, **about, ledger_kept=is_kept)


def _lacking(claim: Claim, audit: list[Entry], ledger: Ledger) -> list[str]:
    """Return the files that lack what the claim names, unless a person has settled it or recovered the ledger since."""
    settled = [_claim_of(entry) for entry in audit if entry.event == SETTLED]
    lacking = []
    if claim.ledger is not None and not (
        claim.ledger in {other.ledger for other in settled}
        or claim.ledger in _kept(ledger)
        or claim.ledger in ledger.hashes()
    ):
        lacking.append(str(ledger.path))
    known = {entry.hash for entry in audit} | {other.audit for other in settled}
    if claim.audit is not None and claim.audit not in known:
        lacking.append("the audit log")
    return lacking


def _holds(ledger: Ledger, digest: str) -> bool:
    """Return whether a ledger holds, or has superseded, an entry; a damaged one does not."""
    from client.ledger.ledger import LedgerError

    try:
        return digest in ledger.hashes()
    except LedgerError:
        return False


def _kept(ledger: Ledger) -> dict[str, Any]:
    """Return the decisions to keep a ledger that lacks an entry, by its hash."""
    from client.ledger.ledger import LedgerError

    file = kept_file(ledger.path)
    try:
        return read_sealed(file, _REMEDY)[0] if file.exists() else {}
    except DamagedFileError as error:
        raise LedgerError(str(error)) from None


def _entries(state: Path) -> list[Entry]:
    log = state / AUDIT_FILE
    return read_entries(log) if log.exists() else []


def _recorded(audit: list[Entry]) -> Claim | None:
    return next((_claim_of(entry) for entry in reversed(audit) if entry.event == ROLLED_BACK), None)


def _claim_of(entry: Entry) -> Claim:
    try:
        named = {name: entry.details.get(name) for name in Claim.model_fields}
        return Claim.model_validate_json(json.dumps(named))
    except ValidationError:
        raise AuditError(Path(AUDIT_FILE), "is not an entry that this version of Fedvox can read", entry.n) from None
