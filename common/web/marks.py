"""What pages show, read again when it has changed, and only then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


def mark_of(*files: Path) -> Hashable:
    """Return a value that changes when one of some files does, or comes or goes."""
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
    """A value, made again when its mark has changed.

    Parameters
    ----------
    mark
        Returns the mark, such as ``mark_of`` the files that the value is made from.
    make
        Makes it; what it raises is raised, and not remembered.
    """

    def __init__(self, mark: Callable[[], Hashable], make: Callable[[], T]) -> None:
        self._mark = mark
        self._make = make
        self._lock = threading.Lock()
        self._known: tuple[Hashable, T] | None = None

    def get(self) -> T:
        """Return the value as it is now."""
        with self._lock:
            mark = self._mark()
            if self._known is None or self._known[0] != mark:
                self._known = mark, self._make()
            return self._known[1]
