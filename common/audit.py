"""What happened, in a form that shows when it was changed: an append-only, hash-chained log.

One JSON object a line: its number ``n``, ``time``, ``event`` and details, the hash of the line before (``previous``),
and its own ``hash``, the SHA-256 of all of the line before that key. Whoever edits, removes or swaps lines breaks the
chain. So that lines missing at the end show too, a second file (``.head``) holds number and hash of the last one.

A chain proves itself only against the hash of its last line: who may write both files can write a whole new history.
Note that hash outside the building's machines now and then, and look for it with ``AuditSummary.hashes``.

Writers are kept apart by a lock on the file, be they threads or processes. An entry is on disk before ``append``
returns, and a log that cannot be written, or is broken, raises: what must be written down can then not be done.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import FedvoxError, OutputError
from common.system.files import write_atomically

START = "0" * 64
OWN_KEYS = frozenset({"n", "time", "event", "previous", "hash"})
_REMEDY = "free space or restore its rights; nothing is sent that cannot be written down"
_ENDING = re.compile(rb',"hash":"([0-9a-f]{64})"}\n\Z')


class AuditError(FedvoxError):
    """An audit log is broken, or cannot be written.

    Attributes
    ----------
    path
        the log.
    line
        the first line that is wrong, from 1; None if no single one is.
    """

    def __init__(self, path: Path, problem: str, line: int | None = None) -> None:
        self.path = path
        self.line = line
        super().__init__(f"{path}{f', line {line}' if line else ''}: {problem}")


@dataclass(frozen=True)
class Entry:
    """One line of a log; ``details`` is everything beside the log's own keys."""

    n: int
    time: str
    event: str
    details: dict[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True)
class AuditSummary:
    """What a proven log holds.

    Attributes
    ----------
    entries
        how many.
    head
        hash of the last one (``START`` of an empty log).
    first, last
        their times, ISO 8601 in UTC; None for an empty log.
    events
        event -> how often.
    hashes
        of every entry.
    torn_bytes
        of an entry that a crash cut off in the middle; nothing was done on its account.
    """

    entries: int
    head: str
    first: str | None
    last: str | None
    events: dict[str, int]
    hashes: frozenset[str] = field(repr=False)
    torn_bytes: int = 0


@dataclass
class _Chain:
    """How far a log was walked, and the hashes of the last two lines."""

    n: int = 0
    hash: str = START
    previous: str = START
    offset: int = 0
    torn: bytes = b""


class AuditLog:
    """Appends to the log at ``path``; its folder must exist.

    Every object walks the whole chain before its first entry, and from then on whatever others appended since its last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chain = _Chain()
        self._file: tuple[int, int] | None = None
        self._threads = threading.Lock()

    def append(self, event: str, **details: Any) -> Entry:
        """Writes an entry and waits until it is on disk.

        Parameters
        ----------
        event
            a short name.
        details
            what JSON can hold; no infinity, no NaN.

        Raises
        ------
        AuditError
            the log is broken or cannot be written; it is then as it was before.
        ValueError
            a detail has the name of one of the log's own keys, or does not fit into JSON.
        """
        if taken := OWN_KEYS & set(details):
            raise ValueError(f"details may not be called {', '.join(sorted(taken))}")
        try:
            with self._threads, _open(self.path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as descriptor:
                self._catch_up(descriptor)
                if self._chain.torn:
                    torn = len(self._chain.torn)
                    os.ftruncate(descriptor, self._chain.offset)
                    self._chain.torn = b""
                    self._write(descriptor, "log_repaired", {"torn_bytes": torn})
                return self._write(descriptor, event, details)
        except OSError as error:
            raise AuditError(self.path, f"cannot be written: {error.strerror or error}; {_REMEDY}") from None
        except OutputError as error:
            raise AuditError(self.path, f"cannot be written: {error}; {_REMEDY}") from None

    def _catch_up(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if identity != self._file or status.st_size < self._chain.offset:
            self._file, self._chain = identity, _Chain()
        chain = _Chain(**vars(self._chain))
        with open(descriptor, "rb", closefd=False) as stream:
            for _ in _walk(self.path, stream, chain):
                pass
        _compare_with_head(self.path, chain)
        self._chain = chain

    def _write(self, descriptor: int, event: str, details: dict[str, Any]) -> Entry:
        chain = self._chain
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        body = {"n": chain.n + 1, "time": time, "event": event, **details, "previous": chain.hash}
        text = json.dumps(body, separators=(",", ":"), allow_nan=False)
        own = hashlib.sha256(text.encode()).hexdigest()
        line = f'{text[:-1]},"hash":"{own}"}}\n'.encode()
        try:
            _write_all(descriptor, line, chain.offset)
            os.fsync(descriptor)
            # Only after the entry: a crash in between leaves the head one entry behind, which is told from a cut.
            _write_head(self.path, chain.n + 1, own)
        except (OSError, OutputError):
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, chain.offset)
            raise
        self._chain = _Chain(chain.n + 1, own, chain.hash, chain.offset + len(line))
        return Entry(chain.n + 1, time, event, details, chain.hash, own)


def verify(path: Path, see: Callable[[Entry], object] | None = None) -> AuditSummary:
    """Walks the whole chain.

    Parameters
    ----------
    path
        the log.
    see
        gets every entry, in order; what it got counts only if nothing is raised afterwards.

    Raises
    ------
    AuditError
        there is no log, it cannot be read, or it was edited, cut, or put in another order.
    """
    chain, events, hashes = _Chain(), Counter[str](), []
    first = last = None
    try:
        with _open(path, os.O_RDONLY, fcntl.LOCK_SH) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            for entry in _walk(path, stream, chain):
                first, last = first or entry.time, entry.time
                events[entry.event] += 1
                hashes.append(entry.hash)
                if see is not None:
                    see(entry)
            _compare_with_head(path, chain)
    except FileNotFoundError:
        gone = "is gone, and its .head file says that there was one" if head_of(path).exists() else "there is no log"
        raise AuditError(path, gone) from None
    except OSError as error:
        raise AuditError(path, f"cannot be read: {error.strerror or error}") from None
    return AuditSummary(chain.n, chain.hash, first, last, dict(events), frozenset(hashes), len(chain.torn))


def read_entries(path: Path) -> list[Entry]:
    """The entries of a log, without proof that nobody changed them; a torn last line is left out.

    Raises
    ------
    AuditError
        there is no log, it cannot be read, or a line is not an entry at all.
    """
    try:
        with _open(path, os.O_RDONLY, fcntl.LOCK_SH) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            lines = stream.readlines()
    except OSError as error:
        raise AuditError(path, f"cannot be read: {error.strerror or error}") from None
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [_parse(path, line, number) for number, line in enumerate(lines, start=1)]


def head_of(path: Path) -> Path:
    """The file that holds number and hash of the log's last entry."""
    return path.with_name(f"{path.name}.head")


@contextlib.contextmanager
def _open(path: Path, flags: int, lock: int) -> Iterator[int]:
    # No link is followed: the log is where it says it is.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(path: Path, stream: BinaryIO, chain: _Chain) -> Iterator[Entry]:
    """Yields the entries behind ``chain``, and moves it along."""
    stream.seek(chain.offset)
    chain.torn = b""
    for line in stream:
        if not line.endswith(b"\n"):
            chain.torn = line
            return
        entry = _parse(path, line, chain.n + 1)
        body = line[: _ending(path, line, chain.n + 1).start()] + b"}"
        if hashlib.sha256(body).hexdigest() != entry.hash:
            raise AuditError(path, "was edited: its hash does not fit its content", chain.n + 1)
        if entry.previous != chain.hash:
            raise AuditError(path, "does not follow on the line before: lines are missing or swapped", chain.n + 1)
        if entry.n != chain.n + 1:
            raise AuditError(path, f"has number {entry.n}: lines are missing or swapped", chain.n + 1)
        chain.n, chain.previous, chain.hash = entry.n, chain.hash, entry.hash
        chain.offset += len(line)
        yield entry


def _parse(path: Path, line: bytes, number: int) -> Entry:
    own = _ending(path, line, number)[1].decode()
    try:
        values = json.loads(line)
        details = {key: value for key, value in values.items() if key not in OWN_KEYS}
        n, time, event, previous = (values[key] for key in ("n", "time", "event", "previous"))
    except (ValueError, RecursionError, KeyError):
        raise AuditError(path, "is not an entry of an audit log", number) from None
    if not isinstance(n, int) or not all(isinstance(text, str) for text in (time, event, previous)):
        raise AuditError(path, "is not an entry of an audit log", number)
    return Entry(n, time, event, details, previous, own)


def _ending(path: Path, line: bytes, number: int) -> re.Match[bytes]:
    if (ending := _ENDING.search(line)) is None:
        raise AuditError(path, "is not an entry of an audit log", number)
    return ending


def _compare_with_head(path: Path, chain: _Chain) -> None:
    n, own = _read_head(path)
    last = chain.n
    if n > last:
        raise AuditError(path, f"ends at entry {last}, but {head_of(path).name} says {n}: the end was cut off")
    # A crash may have come between an entry and its head, once.
    if (n, own) not in {(last, chain.hash), (last - 1, chain.previous)}:
        raise AuditError(path, f"and {head_of(path).name} do not belong together: one of them was replaced")


def _read_head(path: Path) -> tuple[int, str]:
    head = head_of(path)
    try:
        values = json.loads(head.read_bytes())
        n, own = values["n"], values["hash"]
    except FileNotFoundError:
        return 0, START
    except (OSError, ValueError, KeyError, TypeError):
        raise AuditError(head, "is damaged or cannot be read") from None
    if not isinstance(n, int) or not isinstance(own, str):
        raise AuditError(head, "is damaged or cannot be read")
    return n, own


def _write_head(path: Path, n: int, own: str) -> None:
    write_atomically(head_of(path), json.dumps({"n": n, "hash": own}) + "\n")
    # The new name has to outlast a power cut too, or the log would be several entries ahead of its head.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
