"""Resumable upload of an update, and the verified file that it is read from."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from client.courier.connection import Access, Connection
from client.courier.errors import GivenUpError, LineError, RefusedError
from client.courier.transfers.files import file_digest, tell
from client.courier.transfers.pace import Pace
from common.protocol.messages import ErrorCode, Failure

MOST_WRONG_OFFSETS = 5
_NUMBER = re.compile(r"\d{1,18}")
log = logging.getLogger("fedvox.courier")


class VerifiedFile:
    """A file whose content was hashed and has not changed since."""

    def __init__(self, path: Path, file: FileIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self._seen = _fingerprint(file)

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer, and check that the file has not changed since it was hashed.

        Raises
        ------
        GivenUpError
            If the file was changed or removed, or cannot be read.
        """
        try:
            count = os.preadv(self.file.fileno(), [buffer], offset)
        except OSError as error:
            raise _outbox_failure(self.path, error.strerror or "cannot be read") from None
        # A rename counts as a change too: the next update overwrites the pages of a dropped file.
        if count == 0 or _fingerprint(self.file) != self._seen:
            raise _outbox_failure(self.path, "was changed or removed during the upload")
        return count


@contextlib.contextmanager
def verified(path: Path, digest: str) -> Iterator[VerifiedFile]:
    """Open a file of the outbox and verify its digest.

    Raises
    ------
    GivenUpError
        If it cannot be opened, or its digest does not match.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
    except OSError as error:
        raise _outbox_failure(path, f"cannot be opened ({error.strerror})") from None
    with file:
        before = VerifiedFile(path, file, os.fstat(file.fileno()).st_size)
        if file_digest(file) != digest:
            raise _outbox_failure(path, "was changed or damaged: its SHA-256 does not match its name")
        if before.size:
            before.read(0, memoryview(bytearray(1)))
        yield before


def is_complete(response: http.client.HTTPResponse) -> bool:
    """Return whether a response says that the server has the whole update."""
    return response.getheader("upload-complete", "").strip() == "?1"


class Upload:
    """Upload of one update.

    Parameters
    ----------
    access
        Access to the gateway.
    pace
        Rate limit and hours.
    task
        Name of the task that it answers.
    digest
        SHA-256 of the file.
    file
        File to send.
    """

    def __init__(self, access: Access, pace: Pace, task: str, digest: str, file: VerifiedFile) -> None:
        self._access = access
        self._pace = pace
        self._digest = digest
        self._file = file
        self._path = f"/updates/{task}/{digest}"
        self._what = f"update {digest[:12]}"
        self._reached = 0
        self._wrong_offsets = 0
        self._wrong_contents = 0

    def attempt(self) -> None:
        """Upload until the server has the whole file.

        Raises
        ------
        LineError
            If it breaks off; the next attempt resumes there.
        RefusedError
            If the server refuses.
        GivenUpError
            If the file has changed.
        """
        began = time.monotonic()
        with self._access.connection() as connection:
            offset = first = self._query_offset(connection)
            if offset is None:
                log.info("%s: the server has it already", self._what)
            elif offset:
                log.info("%s: resuming at byte %d", self._what, offset)
            while offset is not None:
                has_progressed, self._reached = offset > self._reached, max(self._reached, offset)
                try:
                    self._pace.wait_for_hours(self._file.size, self._what)
                    offset = self._send_window(connection, offset)
                except LineError as error:
                    error.progressed = has_progressed
                    raise
        if first is not None:
            tell(self._what, "sent", self._file.size - first, time.monotonic() - began)

    def _query_offset(self, connection: Connection) -> int | None:
        """Return how many bytes the server has; None if all."""
        response = connection.request("HEAD", self._path)
        connection.check(response, self._what, 200)
        response.read()
        return self._parse_offset(response)

    def _parse_offset(self, response: http.client.HTTPResponse) -> int | None:
        if is_complete(response):
            return None
        offset = response.getheader("upload-offset", "").strip()
        if not _NUMBER.fullmatch(offset) or int(offset) > self._file.size:
            raise LineError(f"{self._what}: the server does not say how much it has")
        return int(offset)

    def _send_window(self, connection: Connection, offset: int) -> int | None:
        """Send one window; return how many bytes the server then has, None if all."""
        length = min(self._pace.window, self._file.size - offset)
        headers = {"upload-offset": str(offset), "upload-length": str(self._file.size)}
        broken: LineError | None = None
        connection.begin("PATCH", self._path, headers, length, self._digest)
        try:
            self._send_body(connection, offset, length)
        except LineError as error:
            broken = error  # a server that refuses may answer before it has read the body
        except BaseException:
            connection.close()
            raise
        try:
            response = connection.answer()
        except LineError as error:
            raise broken or error from None
        if response.status == 422 and self._wrong_contents == 0:
            self._wrong_contents += 1
            connection.close()
            raise LineError(f"{self._what}: arrived damaged; sending it again")
        if response.status == 409:
            return self._resume_offset(connection, response)
        connection.check(response, self._what, 200, 201, 202, 204)
        response.read()
        now = None if response.status == 201 else self._parse_offset(response)
        if broken is not None:
            connection.close()
            raise broken
        if now is not None and now <= offset:
            raise LineError(f"{self._what}: the server does not store what it receives")
        self._wrong_offsets = 0
        return now

    def _send_body(self, connection: Connection, offset: int, length: int) -> None:
        buffer = memoryview(bytearray(min(self._pace.portion, max(1, length))))
        end = offset + length
        while offset < end:
            count = self._file.read(offset, buffer[: min(len(buffer), end - offset)])
            connection.send(buffer[:count])
            offset += count
            self._pace.take(count)

    def _resume_offset(self, connection: Connection, response: http.client.HTTPResponse) -> int | None:
        """Return the offset to resume at after a conflict; None if the server has all bytes."""
        connection.close()  # the server may not have read the body
        self._wrong_offsets += 1
        if self._wrong_offsets > MOST_WRONG_OFFSETS:
            raise RefusedError(self._what, 409, "no offset is accepted")
        now = self._parse_offset(response)
        if self._wrong_offsets > 1:
            # An earlier attempt's connection may still be open on the server.
            raise LineError(f"{self._what}: the server expects another offset ({now})")
        return now


def _fingerprint(file: FileIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink


def _outbox_failure(path: Path, problem: str) -> GivenUpError:
    return GivenUpError(f"{path}: {problem}; no more of it is sent", Failure(ErrorCode.INTERNAL, "OutboxFileError"))
