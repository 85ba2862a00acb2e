"""A tamper-evident audit log: append-only and hash-chained.

Each line is a JSON object with a number ``n``, ``time``, ``event``, details, the hash of the previous line
(``previous``) and its own ``hash``: the SHA-256 of everything in the line before that key. Editing, removing or
swapping lines breaks the chain. A second file (``.head``) holds the number and hash of the last line, so that a
truncated log is detected too.

A chain proves integrity only against a known hash of its last line: anyone who can write both files can forge a whole
history. Record that hash on another system now and then, and look it up in ``AuditSummary.hashes``.

A file lock serialises writers across threads and processes. An entry is on disk before ``append`` returns. A log that
is broken or cannot be written raises, so an action that must be logged does not happen unlogged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import FedvoxError, OutputError
from common.system.files import flush_folder, write_atomically
from common.system.locks import FileLock, lock_file

START = "0" * 64
OWN_KEYS = frozenset({"n", "time", "event", "previous", "hash"})
_REMEDY = "free space or restore its permissions; nothing is sent that cannot be logged"
_GONE = "is gone, and its .head file says that there was one"
_ENDING = re.compile(rb',"hash":"([0-9a-f]{64})"}\n\Z')


class AuditError(FedvoxError):
    """An audit log is broken, or cannot be written.

    Attributes
    ----------
    path
        The log.
    line
        Number of the first bad line, from 1; None if no single line is at fault.
    """

    def __init__(self, path: Path, problem: str, line: int | None = None) -> None:
        self.path = path
        self.line = line
        super().__init__(f"{path}{f', line {line}' if line else ''}: {problem}")


@dataclass(frozen=True)
class Entry:
    """One line of a log; ``details`` holds everything except the log's own keys."""

    n: int
    time: str
    event: str
    details: dict[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True)
class AuditSummary:
    """Summary of a verified log.

    Attributes
    ----------
    entries
        Number of entries.
    head
        Hash of the last entry (``START`` for an empty log).
    first, last
        Times of the first and last entry, ISO 8601 in UTC; None for an empty log.
    events
        Event -> number of entries.
    hashes
        Hashes of all entries.
    torn_bytes
        Size of an incomplete last entry, cut off by a crash; the action it describes never took place.
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
    """Position up to which a log has been verified, and the hashes of the last two lines."""

    n: int = 0
    hash: str = START
    previous: str = START
    offset: int = 0
    torn: bytes = b""


class AuditLog:
    """Appends to the log at ``path``; its folder must exist.

    Each object verifies the whole chain before its first entry, and afterwards only what others have appended since.

    Parameters
    ----------
    path
        The log.
    events
        Events whose entries ``kept`` returns.
    """

    def __init__(self, path: Path, events: Collection[str] = ()) -> None:
        self.path = path
        self._events = frozenset(events)
        self._kept: list[Entry] = []
        self._chain = _Chain()
        self._file: tuple[int, int] | None = None
        self._threads = threading.Lock()

    def append(self, event: str, **details: Any) -> Entry:
        """Write an entry and wait until it is on disk.

        Parameters
        ----------
        event
            A short name.
        details
            JSON values, without infinity or NaN.

        Raises
        ------
        AuditError
            If the log is broken or cannot be written; it is left unchanged.
        ValueError
            If a detail uses one of the log's own keys or is not valid JSON.
        """
        if taken := OWN_KEYS & set(details):
            raise ValueError(f"details may not be called {', '.join(sorted(taken))}")
        # Opening would make a new, empty log, and hide that the old one is gone.
        if head_of(self.path).exists() and not self.path.exists():
            raise AuditError(self.path, _GONE)
        try:
            with self._threads, _lock_to_write(self.path) as descriptor:
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

    def kept(self) -> list[Entry]:
        """Return all entries so far of the ``events``, verified; empty if there is no log and never was.

        Raises
        ------
        AuditError
            If the log is broken, cannot be read, or is gone.
        """
        try:
            with self._threads, _lock_to_read(self.path) as descriptor:
                self._catch_up(descriptor)
                return list(self._kept)
        except FileNotFoundError:
            if head_of(self.path).exists():
                raise AuditError(self.path, _GONE) from None
            return []
        except OSError as error:
            raise AuditError(self.path, f"cannot be read: {error.strerror or error}") from None

    def _catch_up(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if identity != self._file or status.st_size < self._chain.offset:
            self._file, self._chain, self._kept = identity, _Chain(), []
        chain = _Chain(**vars(self._chain))
        with open(descriptor, "rb", closefd=False) as stream:
            found = [entry for entry in _walk(self.path, stream, chain) if entry.event in self._events]
        _compare_with_head(self.path, chain)
        self._chain = chain
        self._kept += found

    def _write(self, descriptor: int, event: str, details: dict[str, Any]) -> Entry:
        chain = self._chain
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        unsealed = Entry(chain.n + 1, time, event, details, chain.hash, "")
        entry = replace(unsealed, hash=hashlib.sha256(_text(unsealed)).hexdigest())
        line, own = line_of(entry), entry.hash
        try:
            _write_all(descriptor, line, chain.offset)
            os.fsync(descriptor)
            # Only after the entry: a crash in between leaves the head one entry behind, which is not a truncated log.
            _write_head(self.path, entry.n, own)
        except (OSError, OutputError):
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, chain.offset)
            raise
        self._chain = _Chain(entry.n, own, chain.hash, chain.offset + len(line))
        if event in self._events:
            self._kept.append(entry)
        return entry


def verify(path: Path, see: Callable[[Entry], object] | None = None) -> AuditSummary:
    """Verify the whole chain.

    Parameters
    ----------
    path
        The log.
    see
        Called with every entry, in order; trust what it received only if this function returns.

    Raises
    ------
    AuditError
        If there is no log, it cannot be read, or it was edited, truncated or reordered.
    """
    chain, events, hashes = _Chain(), Counter[str](), []
    first = last = None
    try:
        with _lock_to_read(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            for entry in _walk(path, stream, chain):
                first, last = first or entry.time, entry.time
                events[entry.event] += 1
                hashes.append(entry.hash)
                if see is not None:
                    see(entry)
            _compare_with_head(path, chain)
    except FileNotFoundError:
        raise AuditError(path, _GONE if head_of(path).exists() else "there is no log") from None
    except OSError as error:
        raise AuditError(path, f"cannot be read: {error.strerror or error}") from None
    return AuditSummary(chain.n, chain.hash, first, last, dict(events), frozenset(hashes), len(chain.torn))


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a log without verifying the chain; an incomplete last line is skipped.

    Raises
    ------
    AuditError
        If there is no log, it cannot be read, or a line is not an entry.
    """
    try:
        with _lock_to_read(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            lines = stream.readlines()
    except OSError as error:
        raise AuditError(path, f"cannot be read: {error.strerror or error}") from None
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return [_parse(path, line, number) for number, line in enumerate(lines, start=1)]


def read_part(path: Path) -> list[Entry]:
    """Return the entries of a file with a part of a log, after verifying that each follows the one before it.

    Raises
    ------
    AuditError
        If the file cannot be read, holds no entry, or was edited, cut within a line, or reordered.
    """
    try:
        with _lock_to_read(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            first = _parse(path, stream.readline(), 1)
            chain = _Chain(first.n - 1, first.previous)
            entries = list(_walk(path, stream, chain))
    except OSError as error:
        raise AuditError(path, f"cannot be read: {error.strerror or error}") from None
    if chain.torn:
        raise AuditError(path, "its last line is not whole")
    return entries


def line_of(entry: Entry) -> bytes:
    """Return the line of a log that holds an entry."""
    return _text(entry)[:-1] + b',"hash":"%s"}\n' % entry.hash.encode()


def head_hash(path: Path) -> str | None:
    """Return the hash of a log's last entry, or of the one before it after a crash; None without a log.

    Raises
    ------
    AuditError
        If the ``.head`` file is damaged or cannot be read.
    """
    n, own = _read_head(path)
    return own if n else None


def head_of(path: Path) -> Path:
    """Return the path of the file that holds the number and hash of the log's last entry."""
    return path.with_name(f"{path.name}.head")


def _text(entry: Entry) -> bytes:
    """Return everything in an entry's line before its hash, closed as an object."""
    body = {"n": entry.n, "time": entry.time, "event": entry.event, **entry.details, "previous": entry.previous}
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def _lock_to_write(path: Path) -> FileLock:
    # Symbolic links are not followed, here and below, so the log cannot be redirected.
    return lock_file(path, flags=os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)


def _lock_to_read(path: Path) -> FileLock:
    return lock_file(path, shared=True, flags=os.O_RDONLY | os.O_NOFOLLOW)


def _walk(path: Path, stream: BinaryIO, chain: _Chain) -> Iterator[Entry]:
    """Verify and yield the entries after ``chain``, and advance it."""
    stream.seek(chain.offset)
    chain.torn = b""
    for line in stream:
        if not line.endswith(b"\n"):
            chain.torn = line
            return
        entry = _parse(path, line, chain.n + 1)
        body = line[: _ending(path, line, chain.n + 1).start()] + b"}"
        if hashlib.sha256(body).hexdigest() != entry.hash:
            raise AuditError(path, "was edited: its hash does not match its content", chain.n + 1)
        if entry.previous != chain.hash:
            raise AuditError(path, "does not follow the previous line: lines are missing or swapped", chain.n + 1)
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
    # After a crash between writing an entry and its head, the head may be one entry behind.
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
    # The rename must survive a power cut too, or the log could be several entries ahead of its head.
    flush_folder(path.parent)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
