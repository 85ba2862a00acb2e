"""Which patients a site's earlier fingerprints were of: two that differ by few patients tell about those few.

The record lies beside the site's key and never leaves the hospital. It holds hashes, keyed with that key, and no names.
"""

from __future__ import annotations

import hmac
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from client.ledger.patient_identity import sha256_of_content
from common.errors import ConfigError, DamagedFileError
from common.formatting import counted
from common.imaging.datasets.case import Case, errors_of
from common.imaging.threads import map_in_threads
from common.plan.base import Frozen, MinimumCell
from common.system.files import PRIVATE
from common.system.locks import FileLock, lock_for_one
from common.system.state_file import read_sealed, write_sealed

RECORD_FILE = "fingerprints-made.json"
_REMEDY = "restore it from a backup: without it, nobody can tell whether another fingerprint gives few patients away"


class Made(Frozen):
    """A fingerprint that was made.

    Attributes
    ----------
    made_at
        As in the file itself.
    path
        Where it was written.
    minimum_cell
        As in the file itself.
    patients
        A keyed hash of the content of each patient's scans and label maps, sorted.
    """

    made_at: str
    path: str
    minimum_cell: MinimumCell
    patients: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...]


class _Record(Frozen):
    format: Literal[1] = 1
    made: tuple[Made, ...] = ()


def lock_record(folder: Path) -> FileLock:
    """Lock the record from the check until the new fingerprint is in it: two at once would not know of each other.

    Raises
    ------
    ConfigError
        Another fingerprint is being made with this key.
    OutputError
        The folder is missing or cannot be written.
    """
    held = ConfigError(f"{folder}: another fingerprint is being made with this key; wait until that is done")
    return lock_for_one(folder / f".{RECORD_FILE}.lock", held)


def hash_patients(cases: Sequence[Case], key: ec.EllipticCurvePrivateKey) -> tuple[str, ...]:
    """Return ``Made.patients`` of some labelled cases; names of files and packing do not count.

    Raises
    ------
    DataError
        A file cannot be read.
    """
    contents = map_in_threads(_content_of, cases, os.cpu_count() or 1)
    patients: dict[str, list[str]] = {}
    for case, content in zip(cases, contents, strict=True):
        patients.setdefault(case.owner, []).append(content)
    secret = key.private_numbers().private_value.to_bytes(66, "big")
    return tuple(
        sorted(hmac.new(secret, "\n".join(sorted(p)).encode(), "sha256").hexdigest() for p in patients.values())
    )


def check_against_earlier(folder: Path, patients: Sequence[str], minimum_cell: int) -> None:
    """Check that a fingerprint tells about no few patients together with an earlier one.

    Parameters
    ----------
    folder
        Folder with the site's key.
    patients
        As in ``Made``.
    minimum_cell
        Fewest patients in a cell that is shown.

    Raises
    ------
    ConfigError
        It would.
    DamagedFileError
        The record is damaged.
    """
    for made in _read(folder / RECORD_FILE).made:
        before, now = Counter(made.patients), Counter(patients)
        differing = max((before - now).total(), (now - before).total())
        fewest = max(minimum_cell, made.minimum_cell)
        if differing >= fewest or (differing == 0 and minimum_cell == made.minimum_cell):
            continue
        what = (
            f"{counted(differing, 'patient')} changed since, fewer than {fewest}"
            if differing
            else f"of the same patients, with minimum_cell {made.minimum_cell} in place of {minimum_cell}"
        )
        raise ConfigError(
            f"{folder / RECORD_FILE}: a fingerprint was made at {made.made_at} ({what}), and two such would tell about "
            f"few patients; send the one that was made then ({made.path}), or wait until more patients are there"
        )


def remember(folder: Path, made: Made) -> None:
    """Add a fingerprint to the record.

    Raises
    ------
    DamagedFileError
        The record is damaged.
    OutputError
        It cannot be written.
    """
    path = folder / RECORD_FILE
    same = (made.minimum_cell, made.patients)
    others = (other for other in _read(path).made if (other.minimum_cell, other.patients) != same)
    write_sealed(path, _Record(made=(*others, made)).model_dump(mode="json"), mode=PRIVATE)


def _content_of(case: Case) -> str:
    with errors_of(case.images[0]):
        return " ".join(sha256_of_content(path) for path in case.files)


def _read(path: Path) -> _Record:
    if not path.exists():
        return _Record()
    try:
        return _Record.model_validate(read_sealed(path, _REMEDY)[0])
    except ValidationError:
        raise DamagedFileError(path, "is damaged", _REMEDY) from None
