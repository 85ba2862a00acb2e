"""Free memory of this machine or container, to refuse work that cannot fit before the kernel ends the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.errors import FedvoxError

_GIGABYTE = 10**9
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_FROM_THIS_SIZE = 64 * 2**20
"""Smaller amounts are not compared: reading the figures takes longer than a small scan's voxels."""


class MemoryLimitError(FedvoxError, MemoryError):
    """Something needs more memory than is free; said before it is allocated."""


def require_memory(wanted: int, what: str, advice: str, free_bytes: Callable[[], int | None] | None = None) -> None:
    """Check, before allocating, that an amount of memory is free; without figures (not Linux) everything passes.

    Parameters
    ----------
    wanted
        Bytes: a lower bound, so that nothing that fits is refused.
    what
        What needs the memory.
    advice
        What to do.
    free_bytes
        Returns how much is free; by default ``free_memory``.

    Raises
    ------
    MemoryLimitError
        If less is free.
    """
    if wanted < _FROM_THIS_SIZE:
        return
    free = (free_bytes or free_memory)()
    if free is not None and wanted > free:
        raise MemoryLimitError(f"{what} will not fit: {_gigabytes(wanted)} wanted, {_gigabytes(free)} free; {advice}")


def free_memory() -> int | None:
    """Return the bytes that this process can still allocate, by the machine's figures and its container's limits."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    figures = [1024 * _figures(text.replace(":", "")).get("MemAvailable", 0), *_left_in_groups()]
    return min(figures)


def _left_in_groups() -> list[int]:
    """Return what each control group (version 2) above this process has left under its limit."""
    try:
        entries = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    name = next((entry.removeprefix("0::") for entry in entries if entry.startswith("0::")), "/").strip("/")
    group = _CONTROL_GROUPS / name
    found = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(_CONTROL_GROUPS):
            break
        try:
            limit = (folder / "memory.max").read_text(encoding="ascii").strip()
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            pages = _figures((folder / "memory.stat").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            # The kernel gives up cached files before it ends a process.
            cached = pages.get("inactive_file", 0) + pages.get("active_file", 0)
            found.append(max(0, int(limit) - used + cached))
    return found


def _figures(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _gigabytes(size: int) -> str:
    return f"{size / _GIGABYTE:,.1f} GB" if size < 100 * _GIGABYTE else f"{size / _GIGABYTE:,.0f} GB"
