"""Recovery of a ledger that was lost, edited or replaced: a person declares what counts as spent.

The old file is kept under a new name. A new chain begins with an entry that says who decided, when, why, and how much
every patient is assumed to have spent. This may not be less than what the site's audit log and the readable part of the
old file prove. A second site on the same ledger adds its own entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.consent.decisions import decision_of
from client.ledger.account import Account, RecoveryEntry
from client.ledger.ledger import RECOVERY, Ledger, LedgerError, Witness, account_of
from client.ledger.rollback import Claim
from common.audit import AuditError, AuditLog, Entry, head_hash, head_of, read_entries, verify
from common.errors import ConfigError
from common.privacy.accounting import epsilon_of
from common.weights.digest import is_sha256

EVERYTHING = "everything"
_LARGEST_DELTA = 0.01


@dataclass(frozen=True)
class Spent:
    """What every patient is assumed to have spent; both None means that nothing is left to spend."""

    epsilon: float | None
    delta: float | None

    def __str__(self) -> str:
        if self.epsilon is None:
            return "everything: this ledger allows no further federation with differential privacy"
        return f"epsilon {self.epsilon:g} at delta {self.delta:g}"


@dataclass(frozen=True)
class Plan:
    """What a recovery would do.

    Attributes
    ----------
    problem
        Why the ledger is refused.
    known
        Epsilon that is proven to have been spent.
    goes_on
        The file is intact because another site has already recovered it: this site adds an entry.
    """

    problem: str
    known: float
    goes_on: bool


def parse_spent(text: str) -> Spent:
    """Parse ``EPSILON@DELTA`` or ``everything``.

    Raises
    ------
    ConfigError
        The text is neither.
    """
    if text == EVERYTHING:
        return Spent(None, None)
    epsilon, _, delta = text.partition("@")
    try:
        found = float(epsilon), float(delta)
    except ValueError:
        found = math.nan, math.nan
    if not (0 <= found[0] < math.inf and 0 < found[1] < _LARGEST_DELTA):
        raise ConfigError(
            f"--spent {text}: write epsilon and delta, such as 8@5e-6 (delta below {_LARGEST_DELTA:g}), or {EVERYTHING}"
        )
    return Spent(*found)


def plan_recovery(ledger: Ledger, witness: Witness | None, spent: Spent, claim: Claim | None = None) -> Plan:
    """Check whether a ledger needs recovery and whether ``spent`` is enough; change nothing.

    Parameters
    ----------
    ledger
        The refused ledger.
    witness
        The site's witness.
    spent
        What every patient is assumed to have spent before.
    claim
        What the server says that the site reported, and its files lack; None if they lack nothing. Its epsilon is the
        least that was spent.

    Raises
    ------
    ConfigError
        The ledger is intact and the site's own, an intact one is in another place, or ``spent`` is less than what is
        proven.
    LedgerError
        The site's own notes cannot be read.
    """
    try:
        is_intact = ledger.prove()[1] is not None
        if is_intact and claim is None:
            raise ConfigError(f"{ledger.path}: is intact and this site's own; there is nothing to recover")
        problem = (
            f"{ledger.path}: is older than the server says: {claim}" if is_intact else f"{ledger.path}: is missing"
        )
    except LedgerError as error:
        problem = str(error)
    if (elsewhere := _whole_elsewhere(ledger.path, witness)) is not None:
        raise ConfigError(f"{elsewhere}: is this site's ledger and is intact; give it (--ledger {elsewhere})")
    goes_on = _was_recovered(ledger.path)
    known = _known(None if goes_on else ledger.path, witness, spent.delta)
    if claim is not None and claim.epsilon is not None:
        known = max(known, claim.epsilon)
    if spent.epsilon is not None and spent.epsilon < known:
        said = f"epsilon {known:.3g} at delta {spent.delta:g}" if math.isfinite(known) else "more than a number can say"
        who = "the site's notes and the old file prove" if claim is None else "the site's files and the server say"
        raise ConfigError(f"--spent: is less than what {who} ({said}); give at least as much, or {EVERYTHING}")
    return Plan(problem, known if math.isfinite(known) else 0.0, goes_on)


def recover(
    ledger: Ledger,
    witness: Witness | None,
    spent: Spent,
    reason: str,
    user: str | None,
    claim: Claim | None = None,
) -> RecoveryEntry:
    """Start a new chain, or add to one that another site has started, and make it the site's ledger.

    Parameters
    ----------
    ledger
        The refused ledger.
    witness
        The site's witness.
    spent
        What every patient is assumed to have spent before.
    reason
        Reason in the person's words.
    user
        The person's name; None uses the account's.
    claim
        As in ``plan_recovery``.

    Raises
    ------
    ConfigError
        As in ``plan_recovery``.
    LedgerError
        A file cannot be read, written or moved; the ledger is then still refused.
    """
    if not reason.strip():
        raise ConfigError("--reason: is empty; say what happened to the ledger (it is kept permanently)")
    with ledger.locked():
        plan = plan_recovery(ledger, witness, spent, claim)
        who = decision_of(user)
        entry = RecoveryEntry(
            user=who.user,
            account=who.account,
            reason=reason.strip(),
            epsilon=spent.epsilon,
            delta=spent.delta,
            known=plan.known,
            superseded=_superseded(ledger.path, plan.goes_on, witness, claim),
        )
        try:
            if plan.goes_on:
                written = _append(ledger.path, entry)
            else:
                entry, written = _start_anew(ledger.path, entry)
        except OSError as error:
            raise LedgerError(
                f"{error.filename or ledger.path}: cannot be written or moved: {error.strerror}; nothing is lost; "
                "fix this and recover again"
            ) from None
        except AuditError as error:
            raise LedgerError(str(error)) from None
        if witness is not None:
            witness.note_recovery(ledger.path, written, entry)
        return entry


def _whole_elsewhere(path: Path, witness: Witness | None) -> Path | None:
    """Return where the site has written its ledger, if that is another path and the file is intact."""
    try:
        for note in witness.seen() if witness is not None else ():
            other = Ledger(Path(note.path), witness)
            if other.path != path and other.prove()[1] is not None:
                return other.path
    except LedgerError:
        pass
    return None


def _known(path: Path | None, witness: Witness | None, delta: float | None) -> float:
    """Return the largest epsilon that some patient is proven to have spent, at ``delta`` if mechanisms are known.

    Parameters
    ----------
    path
        The old file; None if it continues and so counts anyway.
    witness
        The site's witness.
    delta
        The delta of the epsilon.
    """
    known, spends = witness.spent() if witness is not None else (0.0, {})
    if delta is not None:
        known = max([known, *(epsilon_of(paid, delta) for paid in spends.values())])
    if path is None:
        return known
    try:
        account = account_of(path, read_entries(path))
    except (AuditError, LedgerError):
        return known
    return max(known, _most(account, delta))


def _most(account: Account, delta: float | None) -> float:
    if delta is None:
        return 0.0
    spent = [account.epsilon({"training": patients}, delta) for patients in account.datasets.values()]
    return max([*spent, *(item.entry.with_history(frozenset(), delta) for item in account.recoveries)], default=0.0)


def _superseded(path: Path, goes_on: bool, witness: Witness | None, claim: Claim | None) -> tuple[str, ...]:
    """Return the hashes of entries that a server may still name, and that the ledger will not hold.

    Parameters
    ----------
    path
        The old file, as far as it can be read.
    goes_on
        As in ``Plan``.
    witness
        The site's witness.
    claim
        As in ``plan_recovery``.
    """
    found: set[str | None] = set() if witness is None else set(witness.written())
    found.add(claim.ledger if claim is not None else None)
    old: set[str | None] = set()
    with contextlib.suppress(AuditError):
        old.add(head_hash(path))
    with contextlib.suppress(AuditError, LedgerError):
        entries = read_entries(path)
        old |= {entry.hash for entry in entries}
        old = old.union(*(item.entry.superseded for item in account_of(path, entries).recoveries))
    found = found - old if goes_on else found | old
    return tuple(sorted(digest for digest in found if digest is not None and is_sha256(digest)))


def _was_recovered(path: Path) -> bool:
    entries: list[Entry] = []
    try:
        verify(path, entries.append)
        account_of(path, entries)
    except (AuditError, LedgerError):
        return False
    return bool(entries) and entries[0].event == RECOVERY


def _append(path: Path, entry: RecoveryEntry) -> Entry:
    return AuditLog(path).append(RECOVERY, **entry.model_dump(mode="json"))


def _start_anew(path: Path, entry: RecoveryEntry) -> tuple[RecoveryEntry, Entry]:
    """Replace the old chain by a new one, in an order in which the ledger is refused until the end."""
    head, fresh, aside = head_of(path), path.with_name(f".{path.name}.recovered"), _free_name(path)
    for leftover in (fresh, head_of(fresh)):
        leftover.unlink(missing_ok=True)
    if os.path.lexists(path):
        entry = entry.model_copy(update={"set_aside": aside.name, "set_aside_sha256": _sha256(path)})
    written = _append(fresh, entry)
    if os.path.lexists(head):
        os.link(head, head_of(aside), follow_symlinks=False)
    # From here on, the new head is next to the old file or to none: neither is accepted.
    head_of(fresh).replace(head)
    if os.path.lexists(path):
        path.rename(aside)
    fresh.rename(path)
    return entry, written


def _free_name(path: Path) -> Path:
    stem = f"{path.name}.set-aside-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = (path.with_name(stem if number == 1 else f"{stem}-{number}") for number in range(1, 10_000))
    return next(name for name in names if not (os.path.lexists(name) or os.path.lexists(head_of(name))))


def _sha256(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
