"""Patients' identifiers in the ledger: hashed with a secret of the hospital, which lies beside the ledger.

Without the secret nobody can find out whom an entry is about by trying identifiers. With another secret the same
patients would begin a new budget. So every hash names its secret, and a ledger with hashes of another one is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import unicodedata
from pathlib import Path

from client.ledger.ledger import Ledger, LedgerError
from client.ledger.patient_identity import identifier_mark, secret_of
from common.errors import OutputError
from common.system.files import PRIVATE, write_atomically

SECRET_BYTES = 32


def secret_file(ledger: Path) -> Path:
    """Return the path of the secret that belongs to a ledger."""
    return ledger.with_name(f"{ledger.name}.secret")


class Identifiers:
    """Hashes identifiers with a ledger's secret, which is read, or made, when the first of them is hashed.

    Parameters
    ----------
    ledger
        The hospital's ledger.
    may_make
        Whether a missing secret is made; without it, and without a secret, nothing is hashed.
    """

    def __init__(self, ledger: Ledger, may_make: bool) -> None:
        self._ledger = ledger
        self._file = secret_file(ledger.path)
        self._may_make = may_make
        self._secret: bytes | None = None

    def mark(self, identifier: str) -> str | None:
        """Return the mark of a patient; None if there is no secret, so that the ledger cannot know it.

        Raises
        ------
        LedgerError
            The secret is damaged, missing, or not the one that the ledger was written with.
        """
        if self._secret is None:
            self._secret = self._open()
        if self._secret is None:
            return None
        text = unicodedata.normalize("NFC", identifier).encode()
        return identifier_mark(_name(self._secret), hmac.digest(self._secret, text, "sha256").hex())

    def _open(self) -> bytes | None:
        secret = self._read()
        named = {
            name
            for patients in self._ledger.read().datasets.values()
            for patient in patients
            if (name := secret_of(patient)) is not None
        }
        if secret is None and not named:
            return self._make() if self._may_make else None
        if secret is None or not named <= {_name(secret)}:
            what = "is missing" if secret is None else "is not the one"
            raise LedgerError(
                f"{self._file}: {what} with which {self._ledger.path.name} names patients; restore it from a backup, "
                "together with the ledger (no backup? fedvox-client ledger --recover --help)"
            )
        return secret

    def _read(self) -> bytes | None:
        try:
            with os.fdopen(os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                text = file.read(4 * SECRET_BYTES)
            secret = bytes.fromhex(text.decode().strip())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            secret = b""
        if len(secret) != SECRET_BYTES:
            raise LedgerError(f"{self._file}: is damaged or cannot be read; restore it from a backup")
        return secret

    def _make(self) -> bytes | None:
        """Make the secret, unless another site of the hospital has just made it."""
        with self._ledger.locked():
            if (there := self._read()) is not None:
                return there
            secret = secrets.token_bytes(SECRET_BYTES)
            try:
                write_atomically(self._file, secret.hex() + "\n", mode=PRIVATE)
            except OutputError as error:
                raise LedgerError(str(error)) from None
            return secret


def _name(secret: bytes) -> str:
    return hashlib.sha256(b"fedvox patients " + secret).hexdigest()[:8]
