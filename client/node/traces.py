"""What a node remembers of results: the bytes that it made, and which results a destination has had."""

from __future__ import annotations

import hashlib
from pathlib import Path

from client.node.folders import INSTANCES, NodeFolders, destinations_in, names_in, results_in
from common.system.files import flush_folder

_YEAR_SECONDS = 365 * 86_400.0


def remember_made(folders: NodeFolders, results: Path) -> None:
    """Remember the bytes of new results, before they are handed on.

    Raises
    ------
    OSError
        The disk fails.
    """
    for name in results_in(results):
        (folders.made / _made(results / name)).touch(mode=0o600)
    flush_folder(folders.made)


def damage_of(folders: NodeFolders, result: Path) -> str:
    """Say why a result is of no use; empty if it has the bytes that it was made with."""
    try:
        is_as_made = (folders.made / _made(result)).exists()
    except OSError as error:
        return f"the file cannot be read: {error.strerror or error}"
    return "" if is_as_made else "the file is not as it was made: the disk damaged it"


def remember_sent(folders: NodeFolders, destination: str, result: str) -> None:
    """Remember that a destination has a result, for when the file in ``sent`` is removed.

    Raises
    ------
    OSError
        The disk fails.
    """
    home = folders.arrived / destination
    home.mkdir(mode=0o700, exist_ok=True)
    (home / result).touch(mode=0o600)
    flush_folder(home)


def forget_old(folders: NodeFolders, before: float) -> None:
    """Forget what was made and sent long ago, but nothing since the oldest study or result that is still here.

    Parameters
    ----------
    folders
        The state folder.
    before
        Seconds since the epoch: what is older by a year goes.

    Raises
    ------
    OSError
        The disk fails.
    """
    oldest = before - _YEAR_SECONDS
    for home in (folders.incoming, folders.waiting, folders.done, folders.set_aside):
        oldest = min([oldest, *(_changed(home / study / INSTANCES) for study in names_in(home))])
    for home in (folders.outbox, folders.unsent):
        for destination in destinations_in(home):
            oldest = min([oldest, *(_changed(home / destination / name) for name in names_in(home / destination))])
    for home in (folders.made, *(folders.arrived / destination for destination in destinations_in(folders.arrived))):
        for name in names_in(home):
            if _changed(home / name) < oldest:
                (home / name).unlink()


def _changed(path: Path) -> float:
    """Return when a file was changed; without end if it has moved on."""
    try:
        return path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return float("inf")


def _made(result: Path) -> str:
    with result.open("rb") as file:
        return f"{result.stem}.{hashlib.file_digest(file, 'sha256').hexdigest()}"
