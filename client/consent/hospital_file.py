"""The hospital's own file: the key that seals what it decided, and what its approvals were used for.

A kit comes from the coordinator, and with it may come a folder of decisions. Only decisions that this key has sealed
count. It is made with the first decision, in a file outside every kit, and never leaves the hospital. How often each
approval was used stands beside the key: without the file nothing is approved, so that removing it starts no count anew.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from client.consent.contract import Contract
from common.errors import DamagedFileError, FedvoxError, OutputError
from common.plan.base import Frozen
from common.system.files import PRIVATE, flush_folder
from common.system.locks import FileLock, lock_file
from common.system.state_file import MISSING, read_sealed, write_sealed

_REMEDY = (
    "restore it from a backup of the ledger's folder, or move it away, review every federation and approve it again"
)


class HospitalFileError(FedvoxError):
    """The hospital's file is missing or damaged, or cannot be read."""


class _Content(Frozen):
    """``contracts``: by federation digest and site."""

    format: Literal[1] = 1
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    contracts: dict[str, dict[str, Contract]] = Field(default_factory=dict)


class HospitalFile:
    """The file at ``path``; the same for all federations of a hospital.

    Parameters
    ----------
    path
        By default beside the ledger (``client.state_folder.default_consent``).
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def make_key(self) -> None:
        """Make the file, with a new key, unless there is one.

        Raises
        ------
        HospitalFileError
            The file is damaged.
        OutputError
            It cannot be written.
        """
        with self._locked():
            if self._read() is None:
                self._write(_Content(key=secrets.token_hex(32)))

    def seal(self, content: bytes) -> str:
        """Return the HMAC-SHA-256 of ``content`` in hexadecimal.

        Raises
        ------
        HospitalFileError
            There is no key, or its file is damaged.
        """
        return hmac.new(bytes.fromhex(self._known().key), content, "sha256").hexdigest()

    def contract(self, federation: str, site: str) -> Contract:
        """Return what was begun of a federation, by its digest, at a site.

        Raises
        ------
        HospitalFileError
            The file is missing or damaged.
        """
        return self._known().contracts.get(federation, {}).get(site, Contract())

    def change(self, federation: str, site: str, change: Callable[[Contract], Contract]) -> Contract:
        """Replace a contract by what ``change`` makes of it, and wait until it is on disk; nothing if that raises.

        Raises
        ------
        HospitalFileError
            The file is missing or damaged.
        OutputError
            It cannot be written.
        """
        with self._locked():
            known = self._known()
            sites = known.contracts.get(federation, {})
            changed = change(sites.get(site, Contract()))
            contracts = known.contracts | {federation: sites | {site: changed}}
            self._write(known.model_copy(update={"contracts": contracts}))
            return changed

    def _known(self) -> _Content:
        found = self._read()
        if found is None:
            raise HospitalFileError(f"{self.path}: is missing; it holds the key that seals this hospital's decisions")
        return found

    def _read(self) -> _Content | None:
        try:
            content, _ = read_sealed(self.path, _REMEDY)
            return _Content.model_validate_json(json.dumps(content))
        except DamagedFileError as error:
            if error.problem == MISSING:
                return None
            raise HospitalFileError(str(error)) from None
        except ValidationError:
            raise HospitalFileError(f"{self.path}: is not a hospital's file of this version; {_REMEDY}") from None

    def _write(self, content: _Content) -> None:
        write_sealed(self.path, content.model_dump(mode="json"), mode=PRIVATE)
        # The rename must survive a power failure too: work that is counted begins afterwards.
        flush_folder(self.path.parent)

    def _locked(self) -> FileLock:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return lock_file(
                self.path.with_name(f".{self.path.name}.lock"), flags=os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            )
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written: {error.strerror or error}; choose the folder with $FEDVOX_LEDGER"
            ) from None
