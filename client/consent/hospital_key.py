"""The hospital's own key, which seals what it decided.

A kit comes from the coordinator, and with it may come a folder of decisions. Only decisions that this key has sealed
count. It is made with the first decision, in a file outside every kit, and never leaves the hospital.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from common.config.federation import as_json
from common.errors import FedvoxError, OutputError
from common.plan.base import Frozen
from common.system.files import PRIVATE, write_atomically
from common.system.locks import FileLock, lock_file


class HospitalKeyError(FedvoxError):
    """The hospital's key is damaged or cannot be read."""


class _Content(Frozen):
    format: Literal[1] = 1
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class HospitalKey:
    """The key in ``file``; the same for all federations of a hospital.

    Parameters
    ----------
    file
        By default beside the ledger (``client.state_folder.default_consent``).
    """

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()

    def make(self) -> None:
        """Make the key, unless there is one.

        Raises
        ------
        HospitalKeyError
            The file is damaged.
        OutputError
            It cannot be written.
        """
        with self._locked():
            if self._read() is None:
                write_atomically(self.file, as_json(_Content(key=secrets.token_hex(32))), mode=PRIVATE)

    def seal(self, content: bytes) -> str:
        """Return the HMAC-SHA-256 of ``content`` in hexadecimal.

        Raises
        ------
        HospitalKeyError
            There is no key, or its file is damaged.
        """
        found = self._read()
        if found is None:
            raise HospitalKeyError(f"{self.file}: is missing; it holds the key that seals this hospital's decisions")
        return hmac.new(bytes.fromhex(found.key), content, "sha256").hexdigest()

    def _read(self) -> _Content | None:
        try:
            return _Content.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise HospitalKeyError(
                f"{self.file}: is damaged or cannot be read; restore it from a backup of the ledger's folder, or move "
                "it away, review every federation and approve it again"
            ) from None

    def _locked(self) -> FileLock:
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return lock_file(
                self.file.with_name(f".{self.file.name}.lock"), flags=os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            )
        except OSError as error:
            raise OutputError(
                f"{self.file}: cannot be written: {error.strerror or error}; choose the folder with $FEDVOX_LEDGER"
            ) from None
