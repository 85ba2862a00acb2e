"""Before which operations on files a process is killed: before every one of them, or before one of each kind."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Act = Callable[[int, str], None]


def on_operations(folder: Path, act: Act, idle: Sequence[str] = ()) -> None:
    """From now on this process calls ``act`` with number and kind before each of its operations in a folder.

    Args:
        folder: where operations count.
        act: what is done before each.
        idle: names of files whose operations do not count, because how often there are any depends on the machine.
    """
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in OPERATIONS or str(folder) not in (path := str(arguments[0])):
            return
        if not any(name in path for name in idle):
            act(count, _kind(event, path.removeprefix(str(folder)), arguments))
            count += 1

    sys.addaudithook(hook)


def kill_before(operation: int) -> Act:
    """Ends the process as ``kill -9`` does, before its operation of that number."""

    def act(number: int, kind: str) -> None:
        if number == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def write_kinds(file: Path) -> Act:
    """Notes the kinds of all operations in a file, a line each."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def act(number: int, kind: str) -> None:
        os.write(descriptor, f"{kind}\n".encode())

    return act


def chosen(kinds: Path, places: str, seed: int = 0) -> Iterable[int]:
    """The numbers of operations to be killed at, out of a file by ``write_kinds``.

    Args:
        kinds: the file.
        places: ``every`` for all of them, or ``each-kind`` for one of each kind.
        seed: draws among those of a kind.
    """
    assert places in ("every", "each-kind"), places
    numbers: dict[str, list[int]] = {}
    lines = kinds.read_text().splitlines()
    for number, kind in enumerate(lines):
        numbers.setdefault(kind, []).append(number)
    draw = random.Random(seed)
    return range(len(lines)) if places == "every" else map(draw.choice, numbers.values())


def _kind(event: str, path: str, arguments: tuple[object, ...]) -> str:
    """Event and path, but for sites and for digits and digests in names; for ``open``, whether it may write."""
    path = re.sub("(?<=/sites/)[^/]+", "#", path)
    flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
    return f"{event} {bool(flags & WRITING)} {re.sub('[0-9a-f]{8,}|[0-9]+', '#', path)}"
