"""The files of one site that its page shows, each read again when it has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from client.state_folder import default_consent

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """What the page is about.

    Attributes
    ----------
    kit
        Folder that the coordinator sent.
    state
        The site's state folder.
    ledger
        The hospital's privacy ledger.
    data
        Dataset folder; None if it was not given.
    cache
        Folder for preprocessed scans, only to check its free space; None without one.
    """

    kit: Path
    state: Path
    ledger: Path
    data: Path | None = None
    cache: Path | None = None
    device: str = "auto"

    @property
    def consent(self) -> Path:
        """The hospital's own file."""
        return default_consent()


def mark_of(*files: Path) -> Hashable:
    """Return a value that changes when one of some files does."""
    marks: list[tuple[int, int, int] | None] = []
    for file in files:
        try:
            about = file.stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(marks)


class Remembered(Generic[T]):
    """A value made from files, and made again when one of them has changed.

    Parameters
    ----------
    files
        The files.
    make
        Makes it; what it raises is raised, and not remembered.
    """

    def __init__(self, files: Sequence[Path], make: Callable[[], T]) -> None:
        self._files = files
        self._make = make
        self._lock = threading.Lock()
        self._known: tuple[Hashable, T] | None = None

    def get(self) -> T:
        """Return the value as the files say now."""
        with self._lock:
            mark = mark_of(*self._files)
            if self._known is None or self._known[0] != mark:
                self._known = mark, self._make()
            return self._known[1]
