"""Pseudonyms of patients and objects, and the hospital's own record of whom they stand for.

All pseudonyms follow from a secret of the hospital and the original (HMAC-SHA-256), so that the same patient has the
same pseudonym in every import, while nobody without the secret can find out whom it stands for by trying. The record
lets the hospital look it up. Both files stay at the hospital and are for their owner alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import unicodedata
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import DamagedFileError
from common.system.files import PRIVATE, cannot_write, flush_folder, write_atomically
from common.system.locks import FileLock, lock_file

_KEY_FILE = "secret"
_RECORD_FILE = "identities.jsonl"
_LOCK_FILE = "lock"
_SECRET_BYTES = 32
_FEWEST_DAYS, _MOST_DAYS = 30, 3650
_PLACEHOLDERS = """
    unknown unk na none null nil noid nopatientid anonymous anonymized anonymised anonym anon unbekannt inconnu
    unidentified patient patientid id test x xx xxx
"""
_NOBODY = frozenset(_PLACEHOLDERS.split())
"""What is written where there is no PatientID, without its separators; and so is a row of one digit, 0 or 9."""
_RESTORE = "restore it from a backup, together with the other files of its folder"


def has_identities(folder: Path) -> bool:
    """Return whether a folder has a secret, or the record of one."""
    return (folder / _KEY_FILE).exists() or (folder / _RECORD_FILE).exists()


class Identities:
    """The secret and the record in a folder, which are made if the folder has neither.

    Parameters
    ----------
    folder
        The folder, for its owner alone; made if missing.

    Raises
    ------
    DamagedFileError
        If the secret is damaged, missing, readable by others, or not the one that the record was written with; or if
        there is a secret without a record.
    OutputError
        If the folder cannot be written.

    Attributes
    ----------
    name
        Of the secret, which it says nothing about.
    """

    def __init__(self, folder: Path) -> None:
        self._secret_path = folder / _KEY_FILE
        self._record = folder / _RECORD_FILE
        self._lock = folder / _LOCK_FILE
        self._known: set[str] = set()
        self._offset = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                self._secret = self._read_secret() or self._make_secret()
                self.name = hashlib.sha256(b"identities" + self._secret).hexdigest()[:16]
                self._catch_up()
        except OSError as error:
            raise cannot_write(folder, error) from None

    def patient(self, patient_id: str, study: str) -> str:
        """Return the pseudonym of a patient.

        Parameters
        ----------
        patient_id
            PatientID; may be empty, or a word such as UNKNOWN that stands for none. Its issuer does not count: archives
            do not give it for all studies of a patient.
        study
            StudyInstanceUID: without a PatientID every study has a patient of its own.
        """
        is_known = _is_of_somebody(patient_id)
        key = ("patient", unicodedata.normalize("NFC", patient_id)) if is_known else ("patient of study", study)
        return "FV" + base64.b32encode(self._digest(*key)[:10]).decode()

    def days(self, patient: str) -> int:
        """Return by how many days all dates of a patient, given by pseudonym, are moved into the past."""
        number = int.from_bytes(self._digest("days", patient)[:8], "big")
        return _FEWEST_DAYS + number % (_MOST_DAYS - _FEWEST_DAYS + 1)

    def uid(self, original: str) -> str:
        """Return the UID, derived from a UUID, that stands for another one."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', original)[:16], version=4).int}"

    def record(self, entries: Sequence[dict[str, Any]]) -> None:
        """Write down whom pseudonyms stand for, and wait until it is on disk; does nothing if it is there already.

        Raises
        ------
        DamagedFileError
            If the record is damaged.
        OutputError
            If it cannot be written.
        """
        lines = [json.dumps(entry, sort_keys=True) for entry in entries]
        if self._known.issuperset(lines):
            return
        try:
            with self._locked():
                self._catch_up()
                self._append([line for line in lines if line not in self._known])
        except OSError as error:
            raise cannot_write(self._record, error) from None

    def _digest(self, *parts: str) -> bytes:
        # JSON keeps the parts apart: no two lists of parts have the same text.
        return hmac.digest(self._secret, json.dumps(parts).encode(), "sha256")

    def _locked(self) -> FileLock:
        return lock_file(self._lock, flags=os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)

    def _read_secret(self) -> bytes | None:
        secret = b""
        try:
            with os.fdopen(os.open(self._secret_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise DamagedFileError(self._secret_path, "others may read it", f"chmod 600 {self._secret_path}")
                with contextlib.suppress(ValueError):
                    secret = bytes.fromhex(file.read(4 * _SECRET_BYTES).decode().strip())
        except FileNotFoundError:
            if self._record.exists() and self._record.stat().st_size:
                raise DamagedFileError(self._secret_path, "is missing", _RESTORE) from None
            return None
        if len(secret) != _SECRET_BYTES:
            raise DamagedFileError(self._secret_path, "is damaged", _RESTORE)
        if not self._record.exists():
            raise DamagedFileError(self._record, "is missing", _RESTORE)
        return secret

    def _make_secret(self) -> bytes:
        """Make the empty record, then the secret: a secret without a record is one whose record was lost."""
        os.close(os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE))
        flush_folder(self._record.parent)
        secret = secrets.token_bytes(_SECRET_BYTES)
        write_atomically(self._secret_path, secret.hex() + "\n", mode=PRIVATE)
        flush_folder(self._secret_path.parent)
        return secret

    def _catch_up(self) -> None:
        """Read what others have appended; a last line that a crash cut off is removed, as no file uses it yet."""
        head = json.dumps({"kind": "secret", "name": self.name})
        descriptor = os.open(self._record, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
        with os.fdopen(descriptor, "r+b") as file:
            file.seek(self._offset)
            found = file.read()
            whole = found[: found.rfind(b"\n") + 1]
            if len(whole) < len(found):
                file.truncate(self._offset + len(whole))
            lines = whole.decode("utf-8", "replace").splitlines()
            if self._offset == 0 and lines and lines[0] != head:
                raise DamagedFileError(self._record, f"was written with another {_KEY_FILE}", _RESTORE)
            for line in lines:
                _require_entry(self._record, line)
            self._known.update(lines)
            self._offset += len(whole)
        if self._offset == 0:
            self._append([head])
            flush_folder(self._record.parent)

    def _append(self, lines: Sequence[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        with self._record.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._known.update(lines)
        self._offset += len(data)


def _is_of_somebody(patient_id: str) -> bool:
    plain = "".join(one for one in unicodedata.normalize("NFKC", patient_id).casefold() if one.isalnum())
    return plain not in _NOBODY and bool(plain.strip("0")) and bool(plain.strip("9") or len(plain) == 1)


def _require_entry(path: Path, line: str) -> None:
    try:
        is_entry = isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        is_entry = False
    if not is_entry:
        raise DamagedFileError(path, "has a line that is no entry", _RESTORE)
