"""State files, whose damage is an error that names the file and what to do.

A state file in JSON carries its own SHA-256 (``write_sealed``, ``read_sealed``). The digest of any other file is kept
in such a state file (``digest_of_file``, ``check_digest``), so that its format stays what its readers expect.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import DamagedFileError
from common.system.files import OWN_FILE, PUBLIC, cannot_write, write_atomically

SEAL = "sha256"
"""Key of a state file's own digest."""
DAMAGED = ".damaged"
"""Ending of the name of a file that was put aside."""
MISSING = "is missing"
CHANGED = "was changed or cut: its SHA-256 is not the one that was written down"


def write_sealed(path: Path, content: Mapping[str, Any], *, durable: bool = True, mode: int = PUBLIC) -> str:
    """Write JSON values, and last the SHA-256 of their text; the file is replaced in one step.

    Parameters
    ----------
    path
        The file.
    content
        The values.
    durable, mode
        As in ``write_atomically``.

    Returns
    -------
    str
        The SHA-256.

    Raises
    ------
    OutputError
        The file cannot be written.
    ValueError
        A value is not JSON, or infinite, or NaN.
    """
    text, digest = sealed(content)
    write_atomically(path, text, durable=durable, mode=mode, remedy=OWN_FILE)
    return digest


def read_sealed(path: Path, remedy: str) -> tuple[dict[str, Any], str]:
    """Return the values of a file from ``write_sealed``, and its SHA-256.

    Parameters
    ----------
    path
        The file.
    remedy
        What to do if it is damaged, for the error.

    Raises
    ------
    DamagedFileError
        The file is missing, cannot be read, or differs in any byte from what was written.
    """
    data = _read(path, remedy)
    try:
        content = json.loads(data)
        del content[SEAL]
        text, digest = sealed(content)
    except KeyError:
        problem = "states no SHA-256 of its own: it was changed, or an earlier version of Fedvox wrote it"
        raise DamagedFileError(path, problem, remedy) from None
    except (ValueError, RecursionError, TypeError):
        raise DamagedFileError(path, CHANGED, remedy) from None
    if text.encode() != data:
        raise DamagedFileError(path, CHANGED, remedy)
    return content, digest


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_digest(path: Path, digest: str, remedy: str) -> None:
    """Check that a file is the one whose SHA-256 was written down.

    Raises
    ------
    DamagedFileError
        The file is missing, cannot be read, or is another one.
    """
    try:
        found = digest_of_file(path)
    except FileNotFoundError:
        raise DamagedFileError(path, MISSING, remedy) from None
    except OSError as error:
        raise _unreadable(path, error, remedy) from None
    if found != digest:
        raise DamagedFileError(path, CHANGED, remedy)


def put_aside(path: Path) -> Path | None:
    """Rename a damaged file or folder to ``NAME.damaged``; return its new path, or None if there is none.

    Raises
    ------
    OutputError
        It cannot be renamed.
    """
    aside = path.with_name(f"{path.name}{DAMAGED}")
    try:
        if path.is_dir() and aside.is_dir():
            shutil.rmtree(aside)
        path.replace(aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_write(aside, error) from None
    return aside


def sealed(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text that ``write_sealed`` writes, and its digest; the same values always have the same text."""
    digest = hashlib.sha256(json.dumps(content, indent=2, allow_nan=False).encode()).hexdigest()
    return json.dumps({**content, SEAL: digest}, indent=2, allow_nan=False) + "\n", digest


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedFileError(path, MISSING, remedy) from None
    except OSError as error:
        raise _unreadable(path, error, remedy) from None


def _unreadable(path: Path, error: OSError, remedy: str) -> DamagedFileError:
    return DamagedFileError(path, f"cannot be read: {error.strerror or error}", remedy)
