"""An update on its way to the server, and the file that it is read from."""

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
    """A file whose content was hashed, and that has not been touched since."""

    def __init__(self, path: Path, file: FileIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self._seen = _fingerprint(file)

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fills a buffer, and sees that what it holds is what was hashed.

        Raises
        ------
        GivenUpError
            the file was written to or removed meanwhile.
        """
        try:
            count = os.preadv(self.file.fileno(), [buffer], offset)
        except OSError as error:
            raise _not_as_promised(self.path, error.strerror or "cannot be read") from None
        # Renaming counts as a change too: the pages of a dropped file are written over by the next.
        if count == 0 or _fingerprint(self.file) != self._seen:
            raise _not_as_promised(self.path, "was changed or removed while it was sent")
        return count


@contextlib.contextmanager
def verified(path: Path, digest: str) -> Iterator[VerifiedFile]:
    """Opens a file of the outbox and hashes all of it.

    Raises
    ------
    GivenUpError
        it is missing, or holds something else than its name says.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
    except OSError as error:
        raise _not_as_promised(path, f"cannot be opened ({error.strerror})") from None
    with file:
        before = VerifiedFile(path, file, os.fstat(file.fileno()).st_size)
        if file_digest(file) != digest:
            raise _not_as_promised(path, "was changed or damaged: its SHA-256 is not its name")
        if before.size:
            before.read(0, memoryview(bytearray(1)))
        yield before


def is_complete(response: http.client.HTTPResponse) -> bool:
    """Whether an answer says that the server has the whole update."""
    return response.getheader("upload-complete", "").strip() == "?1"


class Upload:
    """One update.

    Parameters
    ----------
    access
        to the gateway.
    pace
        how fast and when.
    task
        whose answer it belongs to.
    digest
        of the file.
    file
        that is sent.
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
        """Goes on until the server has all of it.

        Raises
        ------
        LineError
            it broke off; another attempt goes on from there.
        RefusedError, GivenUpError
            no attempt will do.
        """
        began = time.monotonic()
        with self._access.connection() as connection:
            offset = first = self._offset(connection)
            if offset is None:
                log.info("%s: the server has it already", self._what)
            elif offset:
                log.info("%s: goes on from byte %d", self._what, offset)
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

    def _offset(self, connection: Connection) -> int | None:
        """How much the server has; None for all."""
        response = connection.request("HEAD", self._path)
        connection.check(response, self._what, 200)
        response.read()
        return self._stand_of(response)

    def _stand_of(self, response: http.client.HTTPResponse) -> int | None:
        if is_complete(response):
            return None
        offset = response.getheader("upload-offset", "").strip()
        if not _NUMBER.fullmatch(offset) or int(offset) > self._file.size:
            raise LineError(f"{self._what}: the server does not say how much it has")
        return int(offset)

    def _send_window(self, connection: Connection, offset: int) -> int | None:
        """One request; how much the server has then, None for all."""
        length = min(self._pace.window, self._file.size - offset)
        headers = {"upload-offset": str(offset), "upload-length": str(self._file.size)}
        broken: LineError | None = None
        connection.begin("PATCH", self._path, headers, length, self._digest)
        try:
            self._send_body(connection, offset, length)
        except LineError as error:
            broken = error  # a server that refuses answers before it has read everything
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
            raise LineError(f"{self._what}: arrived damaged, and is sent anew")
        if response.status == 409:
            return self._corrected(connection, response)
        connection.check(response, self._what, 200, 201, 202, 204)
        response.read()
        now = None if response.status == 201 else self._stand_of(response)
        if broken is not None:
            connection.close()
            raise broken
        if now is not None and now <= offset:
            raise LineError(f"{self._what}: the server keeps nothing of what it gets")
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

    def _corrected(self, connection: Connection, response: http.client.HTTPResponse) -> int | None:
        """Where to go on after a wrong offset."""
        connection.close()  # the server may not have read the body
        self._wrong_offsets += 1
        if self._wrong_offsets > MOST_WRONG_OFFSETS:
            raise RefusedError(self._what, 409, "no offset is right")
        now = self._stand_of(response)
        if self._wrong_offsets > 1:
            # The connection of an earlier attempt may still be open at the other end.
            raise LineError(f"{self._what}: the server is at another byte ({now})")
        return now


def _fingerprint(file: FileIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink


def _not_as_promised(path: Path, problem: str) -> GivenUpError:
    return GivenUpError(
        f"{path}: {problem}; nothing of it is sent any more", Failure(ErrorCode.INTERNAL, "OutboxFileError")
    )
