"""Gives memory back to the machine between tasks."""

from __future__ import annotations

import contextlib
import ctypes


def return_freed_memory() -> None:
    """Hands freed heap pages back to the system, where the C library can.

    glibc keeps them for the next allocation. After a round of training that is several times the size of the model,
    and at a hospital the wait for the next round may last for hours.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
