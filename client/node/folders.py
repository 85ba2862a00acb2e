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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import FedvoxError
from common.system.files import PRIVATE, cannot_write, flush_folder, write_atomically
from common.system.locks import is_locked, lock_for_one

LOCK_FILE = "lock"
STUDY_FILE = "study.json"
"""In a study: what became of its series."""
ATTEMPTS_FILE = "attempts.json"
"""In a study: how often segmenting it was begun."""
STATUS_FILE = "status.json"
SEGMENTER_FILE = "segmenter.json"
"""Process number of a segmenter whose model is ready."""
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
        FedvoxError
            Another process owns it.
        OutputError
            It cannot be written.
        """
        self._make()
        taken = FedvoxError(f"{self.root}: another node is running here; see fedvox-client listen status")
        with lock_for_one(self.root / LOCK_FILE, taken):
            for folder in (self.receiving, self.trash):
                shutil.rmtree(folder)
            self._make()
            yield

    def is_running(self) -> bool:
        """Return whether a process owns the folder."""
        return is_locked(self.root / LOCK_FILE)

    def _make(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in vars(self).values():
                folder.mkdir(mode=0o700, exist_ok=True)
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
