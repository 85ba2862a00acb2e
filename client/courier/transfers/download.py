"""Resumable download of a model into the inbox."""

from __future__ import annotations

import contextlib
import hashlib
import http
import logging
import os
import re
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from client.courier.connection import Access, Connection
from client.courier.errors import GivenUpError, LineError
from client.courier.transfers.files import BUFFER_BYTES, tell
from client.courier.transfers.pace import LARGE_FILE_BYTES, Pace
from common.protocol.messages import ErrorCode, Failure
from common.system.files import cannot_write

MOST_DAMAGED = 3
"""How often a model may arrive with a wrong digest before its task is given up."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_NUMBER = re.compile(r"\d{1,18}")
log = logging.getLogger("fedvox.courier")


def part_name(digest: str) -> str:
    """Return the name of the file that holds a partial download."""
    return f".{digest}.part"


class Download:
    """Download of one model; attempts share the hash of what has arrived.

    Parameters
    ----------
    access
        Access to the gateway.
    pace
        Rate limit and hours.
    digest
        SHA-256 of the model.
    target
        File to create.
    """

    def __init__(self, access: Access, pace: Pace, digest: str, target: Path) -> None:
        self._access = access
        self._pace = pace
        self._digest = digest
        self._target = target
        self._part = target.with_name(part_name(digest))
        self._path = f"/models/{digest}"
        self._what = f"model {digest[:12]}"
        self._file: FileIO | None = None
        self._hash = hashlib.sha256()
        self._at = 0
        self._damaged = 0

    def close(self) -> None:
        """Close the partial file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def attempt(self) -> None:
        """Download until the file is complete.

        Raises
        ------
        LineError, OutputError
            If it breaks off; the next attempt resumes there.
        RefusedError
            If the server refuses.
        GivenUpError
            If it has arrived damaged ``MOST_DAMAGED`` times.
        """
        self._open()
        began_at, began = self._at, time.monotonic()
        # It may have been completed just before the process was killed.
        if self._hash.hexdigest() != self._digest:
            self._fetch()
        if self._hash.hexdigest() != self._digest:
            self._restart()
            self._damaged += 1
            if self._damaged >= MOST_DAMAGED:
                raise GivenUpError(
                    f"{self._what}: arrived damaged {MOST_DAMAGED} times",
                    Failure(ErrorCode.BAD_TASK, "DamagedDownloadError"),
                )
            raise LineError(f"{self._what}: arrived damaged (its SHA-256 does not match)")
        with _disk(self._target):
            self._part.replace(self._target)
        self.close()
        tell(self._what, "fetched", self._at - began_at, time.monotonic() - began)

    def _fetch(self) -> None:
        began_at = self._at
        with self._access.connection() as connection:
            try:
                while not self._fetch_window(connection):
                    pass
            except LineError as error:
                error.progressed = self._at > began_at
                raise

    def _open(self) -> None:
        if self._file is not None:
            return
        with _disk(self._part):
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            self._hash, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER_BYTES))
            while count := self._file.readinto(buffer):
                self._hash.update(buffer[:count])
            self._at = self._file.tell()
        if self._at:
            log.info("%s: resuming at byte %d", self._what, self._at)

    def _restart(self) -> None:
        self.close()
        self._at = 0
        with _disk(self._part):
            self._part.unlink(missing_ok=True)

    def _fetch_window(self, connection: Connection) -> bool:
        """Request one window; return whether the file is complete."""
        if self._pace.has_hours:
            self._pace.wait_for_hours(self._size(connection), self._what)
        last = self._at + self._pace.window - 1
        response = connection.request("GET", self._path, {"range": f"bytes={self._at}-{last}"})
        if response.status == 416:
            self._restart()
            raise LineError(f"{self._what}: the partial file was longer than the model; downloading from the start")
        connection.check(response, self._what, 200, 206)
        end, total = self._expected(response, last)
        self._receive(connection, response, end)
        return self._at == total

    def _expected(self, response: http.client.HTTPResponse, last: int) -> tuple[int, int]:
        """Return the offset at which the response ends, and the size of the whole file."""
        length = response.length
        if response.status == 200 and length is not None:
            if self._at:
                self._restart()
                raise LineError(f"{self._what}: the server ignores ranges; downloading from the start")
            return length, length
        found = _CONTENT_RANGE.fullmatch(response.getheader("content-range", ""))
        if found is not None and length is not None:
            first, until, total = (int(number) for number in found.groups())
            if first == self._at <= until <= last and until < total and length == until - first + 1:
                return until + 1, total
        raise LineError(f"{self._what}: the server sent a different range than requested")

    def _receive(self, connection: Connection, response: http.client.HTTPResponse, end: int) -> None:
        buffer = memoryview(bytearray(self._pace.portion))
        while self._at < end:
            try:
                with self._access.translated():
                    count = response.readinto(buffer[: min(len(buffer), end - self._at)])
            except LineError:
                connection.close()
                raise
            if count == 0:
                connection.close()
                raise LineError(f"{self._what}: broke off at byte {self._at}")
            self._write(buffer[:count])
            self._pace.take(count)

    def _write(self, content: memoryview) -> None:
        while content and self._file is not None:
            with _disk(self._part):
                count = self._file.write(content)
            self._hash.update(content[:count])
            self._at += count
            content = content[count:]

    def _size(self, connection: Connection) -> int:
        response = connection.request("HEAD", self._path)
        connection.check(response, self._what, 200)
        length = response.getheader("content-length", "")
        response.read()
        return int(length) if _NUMBER.fullmatch(length) else LARGE_FILE_BYTES + 1


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn disk errors into ``OutputError``, which is retried."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None
