"""The state folder of a node. Where a study or a result lies is its state; it changes by a rename.

A study is a folder ``STUDY/instances/UID.dcm`` in one of::

    incoming    instances are coming
    waiting     complete, to be segmented; results/ appears in it before results are handed on
    done        segmented
    set-aside   cannot be segmented; study.json says why

A result is a file ``DESTINATION/UID.dcm`` in one of::

    outbox      to be sent
    sent        the destination has it
    unsent      cannot be sent; UID.json says why

Empty files remember ``made/UID.SHA256``, the bytes of results, and ``arrived/DESTINATION/UID.dcm``, what was sent.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.pacs.address import is_uid
from common.errors import ConfigError, FedvoxError
from common.system.files import PRIVATE, cannot_write, flush_folder, write_atomically
from common.system.locks import FileLock, LockHeldError, is_locked, lock_file

LOCK_FILE = "lock"
STUDY_FILE = "study.json"
"""In a study: what became of its series."""
ATTEMPTS_FILE = "attempts.json"
"""In a study: how often segmenting it was begun."""
STATUS_FILE = "status.json"
SEGMENTER_FILE = "segmenter.json"
"""Of the segmenter: its process number when its model is ready, or the problem that ended it."""
SEGMENTING_FILE = "segmenting.json"
"""For the segmenter: what of the configuration concerns it, as it was when the node started."""
_LOOKS_SECONDS = 1.0
INSTANCES, RESULTS = "instances", "results"


class NodeFolders:
    """Paths of a state folder; see the module for their meaning."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.receiving = root / "receiving"
        self.incoming = root / "incoming"
        self.waiting = root / "waiting"
        self.done = root / "done"
        self.set_aside = root / "set-aside"
        self.outbox = root / "outbox"
        self.sent = root / "sent"
        self.unsent = root / "unsent"
        self.made = root / "made"
        self.arrived = root / "arrived"
        self.trash = root / "trash"
        self.logs = root / "logs"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, own it for a block, and remove what a killed process left half done.

        Raises
        ------
        ConfigError
            It has other content.
        FedvoxError
            Another process owns it.
        OutputError
            It cannot be written.
        """
        self._require_ours()
        taken = FedvoxError(f"{self.root}: another node is running here; see fedvox-client listen status")
        with self._lock(taken):
            for folder in (self.receiving, self.trash):
                if folder.exists():
                    shutil.rmtree(folder)
            self._make()
            yield

    def strays(self) -> list[str]:
        """Return what lies among the studies and is none, by its path in the state folder."""
        homes = (self.incoming, self.waiting, self.done, self.set_aside)
        return [f"{home.name}/{name}" for home in homes for name in sorted({*names_in(home)} - {*studies_in(home)})]

    def is_running(self) -> bool:
        """Return whether a process owns the folder."""
        return is_locked(self.root / LOCK_FILE)

    def _lock(self, taken: FedvoxError) -> FileLock:
        """Lock the folder; whoever looks whether it is locked holds it for an instant, too."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            return lock_file(self.root / LOCK_FILE, wait_seconds=_LOOKS_SECONDS)
        except LockHeldError:
            raise taken from None
        except OSError as error:
            raise cannot_write(self.root, error) from None

    def _require_ours(self) -> None:
        """Refuse a folder with other content: parts of it would be emptied."""
        try:
            names = {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()
        except OSError as error:
            raise cannot_write(self.root, error) from None
        if names - {"lost+found"} and LOCK_FILE not in names:
            raise ConfigError(f"state: {self.root}: is no state folder of a node, and not empty; name another")

    def _make(self) -> None:
        try:
            for folder in vars(self).values():
                folder.mkdir(mode=0o700, exist_ok=True)
                with suppress(PermissionError):  # the root may be another account's, as a volume
                    folder.chmod(0o700)
            for home in (self.root, self.outbox, self.unsent):  # what a killed process left half written
                for path in [*home.glob(".*.part"), *home.glob("*/.*.part")]:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error) from None

    def discard(self, path: Path) -> None:
        """Remove a file or a folder: at once for all who look, then from the disk."""
        doomed = self.trash / secrets.token_hex(8)
        path.rename(doomed)
        shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder, without temporary ones; none if it is missing."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def results_in(folder: Path) -> list[str]:
    """Return the sorted names of results in a folder."""
    return [name for name in names_in(folder) if name.endswith(".dcm")]


def destinations_in(folder: Path) -> list[str]:
    """Return the sorted names of destinations in a folder, each of which is a folder itself."""
    return [name for name in names_in(folder) if (folder / name).is_dir()]


def studies_in(folder: Path) -> list[str]:
    """Return the sorted names of studies in a folder: folders with the name of a UID. Nothing else there is ours."""
    return [name for name in names_in(folder) if is_uid(name) and (folder / name).is_dir()]


def move(source: Path, target: Path) -> None:
    """Rename a file or folder, flushed to disk.

    Raises
    ------
    OSError
        It is not there, or the disk fails.
    """
    source.rename(target)
    flush_folder(target.parent)
    flush_folder(source.parent)


def write_note(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file, flushed to disk.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    write_atomically(path, json.dumps(content), mode=PRIVATE)


def read_note(path: Path) -> dict[str, Any]:
    """Read a small JSON file; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
