"""The privacy ledger of a hospital's patients, in one file that outlives runs, restarts and kits.

The file is an append-only, hash-chained log (``common.audit``): one entry for every set of patients, and one for every
round, which is on disk before the round begins. A crash may therefore count a round that was never sent, but never miss
one that was. ``client.ledger.account`` computes the totals.

The chain alone cannot reveal that the whole file was replaced by an older copy, or removed together with its ``.head``.
Each site therefore also notes the number and hash of the last entry, in its state folder and in its audit log
(``Witness``). A ledger that does not match is refused, because the privacy that is left is then unknown. A person can
recover with ``client.ledger.recovery``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from client.ledger.account import (
    Account,
    DatasetEntry,
    People,
    RecoveryEntry,
    RoundEntry,
    SpendLine,
    TimedRecovery,
    TimedRound,
)
from client.ledger.patient_identity import dataset_of
from client.state_folder import AUDIT_FILE
from common.audit import AuditError, AuditLog, AuditSummary, Entry, head_of, read_entries, verify
from common.errors import FedvoxError, OutputError
from common.formatting import counted
from common.plan.base import Frozen, PositiveInt
from common.plan.privacy import Purpose, Spend
from common.protocol.messages import ErrorCode
from common.system.files import write_atomically
from common.system.locks import lock_file

WITNESS_FILE: Final = "ledger-witness.json"
SPENT_EVENT: Final = "privacy_spent"
RECOVERED_EVENT: Final = "ledger_recovered"
RECOVERY: Final = "recovery"
_DATASET, _ROUND, _REPAIRED = "dataset", "round", "log_repaired"
_NO_BACKUP = (
    "without it, what the patients have already spent is unknown (no backup? fedvox-client ledger --recover --help)"
)


class LedgerError(FedvoxError):
    """The ledger is broken, not the one that this site wrote, or not writable; nothing is spent."""

    code = ErrorCode.LEDGER


class Seen(Frozen):
    """The last entry of a ledger that a site has seen: number, hash, and path of the file."""

    n: PositiveInt
    hash: str
    path: str


class Witness:
    """A site's own record of its ledger's last entry.

    Parameters
    ----------
    state
        The site's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._file = state / WITNESS_FILE
        self._log = state / AUDIT_FILE
        self._audit = AuditLog(self._log)
        self._logged: Seen | None = None
        self._was_read = False

    def seen(self) -> list[Seen]:
        """Return the latest notes of the state folder and of the audit log.

        Raises
        ------
        LedgerError
            A note is damaged.
        """
        if not self._was_read:
            self._logged, self._was_read = self._read_log(), True
        return [seen for seen in (self._read_file(), self._logged) if seen is not None]

    def spent(self) -> tuple[float, dict[str, list[Spend]]]:
        """Return the past according to the audit log: largest epsilon of any round, and each dataset's costs.

        Raises
        ------
        LedgerError
            The log is broken or cannot be read.
        """
        largest, spends = 0.0, dict[str, list[Spend]]()
        if not self._log.exists():
            return largest, spends
        entries: list[Entry] = []
        try:
            verify(self._log, entries.append)
            for entry in entries:
                if entry.event == SPENT_EVENT:
                    largest = max(largest, float(entry.details["epsilon"]))
                    for details in entry.details.get("spends", ()):
                        line = SpendLine.model_validate_json(json.dumps(details))
                        spends.setdefault(line.dataset, []).append(line.spend)
                elif entry.event == RECOVERED_EVENT and entry.details["epsilon"] is not None:
                    largest = max(largest, float(entry.details["epsilon"]))
        except (AuditError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"{self._log}: does not show what was spent: {error}") from None
        return largest, spends

    def note(self, path: Path, entry: Entry, about: RoundEntry) -> None:
        """Note that the ledger now ends with ``entry``.

        Raises
        ------
        LedgerError
            The note cannot be written.
        """
        details: dict[str, Any] = {"run": about.run, "round": about.round, "epsilon": about.epsilon}
        details["spends"] = [line.model_dump(mode="json") for line in about.spends]
        self._note(SPENT_EVENT, path, entry, details | {"delta": about.delta})

    def note_recovery(self, path: Path, entry: Entry, about: RecoveryEntry) -> None:
        """Note that the site's ledger is now the one that ends with ``entry``.

        Raises
        ------
        LedgerError
            The note cannot be written.
        """
        self._note(RECOVERED_EVENT, path, entry, about.model_dump(mode="json", exclude={"superseded"}))

    def written(self) -> frozenset[str]:
        """Return the hashes of all ledger entries that the audit log names.

        Raises
        ------
        LedgerError
            The log cannot be read.
        """
        if not self._log.exists():
            return frozenset()
        try:
            noted = [
                entry.details for entry in read_entries(self._log) if entry.event in (SPENT_EVENT, RECOVERED_EVENT)
            ]
        except AuditError as error:
            raise LedgerError(str(error)) from None
        return frozenset(details["ledger_hash"] for details in noted if "ledger_hash" in details)

    def _note(self, event: str, path: Path, entry: Entry, details: dict[str, Any]) -> None:
        seen = Seen(n=entry.n, hash=entry.hash, path=str(path))
        try:
            write_atomically(self._file, seen.model_dump_json() + "\n")
            self._audit.append(event, **details, ledger=str(path), ledger_n=entry.n, ledger_hash=entry.hash)
        except (OutputError, AuditError) as error:
            raise LedgerError(str(error)) from None
        self._logged, self._was_read = seen, True

    def _read_file(self) -> Seen | None:
        try:
            return Seen.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise LedgerError(f"{self._file}: is damaged or cannot be read; the audit log holds the same") from None

    def _read_log(self) -> Seen | None:
        if not self._log.exists():
            return None
        try:
            for entry in reversed(read_entries(self._log)):
                if entry.event in (SPENT_EVENT, RECOVERED_EVENT):
                    details = entry.details
                    return Seen(n=details["ledger_n"], hash=details["ledger_hash"], path=details["ledger"])
        except (AuditError, KeyError, ValidationError) as error:
            raise LedgerError(f"{self._log}: does not show what the ledger was: {error}") from None
        return None


class Ledger:
    """The ledger at ``path``; safe for use by several processes.

    Parameters
    ----------
    path
        The file; its folder is created with the first entry.
    witness
        The site's witness; None trusts the chain and its head alone.
    """

    def __init__(self, path: Path, witness: Witness | None = None) -> None:
        self.path = path.absolute()
        self._witness = witness
        self._log = AuditLog(self.path)

    def read(self) -> Account:
        """Read the ledger; empty if there is none and never was.

        Raises
        ------
        LedgerError
            It is broken, missing, or not the one that this site wrote.
        """
        return self.prove()[0]

    def prove(self) -> tuple[Account, AuditSummary | None]:
        """Read the ledger, with the summary of its verified log; None if there is none and never was."""
        entries: list[Entry] = []
        seen = self._witness.seen() if self._witness else []
        if not self.path.exists() and not head_of(self.path).exists():
            for note in seen:
                raise LedgerError(
                    f"{self.path}: is missing, but this site has written {counted(note.n, 'entry', 'entries')} to "
                    f"{note.path}; give that file (--ledger) or put it back; {_NO_BACKUP}"
                )
            return Account(), None
        try:
            summary = verify(self.path, entries.append)
        except AuditError as error:
            raise LedgerError(f"{error}; {_NO_BACKUP}") from None
        for note in seen:
            _compare(self.path, entries, note)
        return account_of(self.path, entries), summary

    def hashes(self) -> frozenset[str]:
        """Return the hashes of all entries, and of those that recoveries have superseded; raises as ``read``."""
        account, proof = self.prove()
        own = proof.hashes if proof is not None else frozenset[str]()
        return own.union(*(item.entry.superseded for item in account.recoveries))

    def spend(self, people: People, decide: Callable[[Account], RoundEntry | None]) -> RoundEntry | None:
        """Append one round, unless ``decide`` raises; the ledger stays locked from reading to writing.

        Parameters
        ----------
        people
            The patients, by the purpose they are used for.
        decide
            Makes the entry from the account so far; returns None if the round is already paid for.

        Raises
        ------
        LedgerError
            The ledger is broken or cannot be written.
        """
        with self.locked():
            account = self.read()
            entry = decide(account)
            if entry is None:
                return None
            for purpose in sorted({line.purpose for line in entry.spends}):
                self._add_dataset(account, people, purpose)
            written = self._append(_ROUND, entry)
            if self._witness is not None:
                self._witness.note(self.path, written, entry)
            return entry

    def _add_dataset(self, account: Account, people: People, purpose: Purpose) -> None:
        patients = tuple(sorted(people[purpose]))
        dataset = dataset_of(patients)
        if dataset not in account.datasets:
            self._append(_DATASET, DatasetEntry(dataset=dataset, patients=patients))

    def _append(self, event: str, entry: DatasetEntry | RoundEntry) -> Entry:
        try:
            return self._log.append(event, **entry.model_dump(mode="json"))
        except AuditError as error:
            raise LedgerError(str(error)) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the ledger against writing by other processes.

        Raises
        ------
        LedgerError
            The ledger's folder cannot be written.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = self.path.with_name(f".{self.path.name}.lock")
            lock = lock_file(file, flags=os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        except OSError as error:
            reason = error.strerror or str(error)
            raise LedgerError(f"{self.path}: cannot be written: {reason}; choose another place (--ledger)") from None
        with lock:
            yield


def _compare(path: Path, entries: list[Entry], seen: Seen) -> None:
    where = "" if str(path) == seen.path else f" (as {seen.path})"
    if len(entries) < seen.n:
        raise LedgerError(
            f"{path}: has {counted(len(entries), 'entry', 'entries')}, but this site has seen {seen.n}{where}: it was "
            f"replaced by an older copy or by another ledger; put the right one back; {_NO_BACKUP}"
        )
    if entries[seen.n - 1].hash != seen.hash:
        raise LedgerError(
            f"{path}: entry {seen.n} is not the one that this site has seen{where}: it was replaced; put the right one "
            f"back; {_NO_BACKUP}"
        )


def account_of(path: Path, entries: list[Entry]) -> Account:
    """Return the content of a ledger's entries.

    Parameters
    ----------
    path
        Path of the ledger, for errors.
    entries
        All entries, in order.

    Raises
    ------
    LedgerError
        An entry is not a ledger entry.
    """
    datasets, rounds, recoveries = {}, [], []
    for entry in entries:
        try:
            if entry.event == _DATASET:
                dataset = DatasetEntry.model_validate_json(json.dumps(entry.details))
                if dataset_of(dataset.patients) != dataset.dataset:
                    raise LedgerError(f"{path}, line {entry.n}: the patients do not match the dataset's digest")
                datasets[dataset.dataset] = dataset.patients
            elif entry.event == _ROUND:
                found = RoundEntry.model_validate_json(json.dumps(entry.details))
                if strangers := {line.dataset for line in found.spends} - set(datasets):
                    raise LedgerError(f"{path}, line {entry.n}: dataset {min(strangers)[:12]} is not in the ledger")
                rounds.append(TimedRound(entry.time, found))
            elif entry.event == RECOVERY:
                recovery = RecoveryEntry.model_validate_json(json.dumps(entry.details))
                recoveries.append(TimedRecovery(entry.time, recovery))
            elif entry.event != _REPAIRED:
                raise LedgerError(f"{path}, line {entry.n}: is not a ledger entry; is this another log?")
        except ValidationError:
            raise LedgerError(f"{path}, line {entry.n}: is not an entry that this version of Fedvox can read") from None
    return Account(datasets, rounds, recoveries)
