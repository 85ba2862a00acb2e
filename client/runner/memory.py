"""Returns freed memory to the operating system between tasks."""

from __future__ import annotations

import contextlib
import ctypes


def return_freed_memory() -> None:
    """Return freed heap pages to the operating system, where the C library can.

    glibc keeps them for later allocations. After a round of training they take several times the size of the model, and
    the next round may be hours away.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
