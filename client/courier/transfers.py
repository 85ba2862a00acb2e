"""Models down, updates up: in windows of at most ``WINDOW_BYTES``, resumed where they broke off.

Of a transfer nothing is held but one buffer, whatever the size of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import http
import http.client
import logging
import os
import re
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from client.courier.connection import BUFFER_BYTES, Access, Connection
from client.courier.errors import GivenUpError, LineError, RefusedError
from client.courier.pace import LARGE_FILE_BYTES, Pace
from client.courier.retry import Retries
from common.files import cannot_write
from common.messages import ErrorCode, Failure
from common.weights.store import HASH_BYTES

MOST_DAMAGED = 3
"""Times that a model may arrive with a wrong digest before its task is given up."""
MOST_WRONG_OFFSETS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_NUMBER = re.compile(r"\d{1,18}")
log = logging.getLogger("fedvox.courier")


class Transfers:
    """Carries files; may be used by several threads at once.

    Args:
        access: to the gateway.
        pace: how fast and when.
        retries: how often.
    """

    def __init__(self, access: Access, pace: Pace, retries: Retries) -> None:
        self._access = access
        self._pace = pace
        self._retries = retries

    def download(self, digest: str, target: Path) -> None:
        """Fetches a model; ``target`` appears by rename, when its digest was found right.

        What has arrived of it waits in ``.DIGEST.part`` beside it, also for the next process.

        Raises:
            RefusedError: the server does not give it (any more).
            GivenUpError: it came damaged, again and again.
            StoppedError: the courier ends.
        """
        download = _Download(self._access, self._pace, digest, target)
        try:
            self._retries.until_done(f"fetching model {digest[:12]}", download.attempt)
        finally:
            download.close()

    def upload(self, task: str, digest: str, file: VerifiedFile) -> None:
        """Sends an update, or the rest of it.

        Raises:
            RefusedError: the server does not take it (any more).
            GivenUpError: the file was changed meanwhile.
            StoppedError: the courier ends.
        """
        upload = _Upload(self._access, self._pace, task, digest, file)
        self._retries.until_done(f"sending update {digest[:12]}", upload.attempt)

    def is_given(self, digest: str) -> bool:
        """Whether the server still gives a model; also true where it does not say.

        Raises:
            StoppedError: the courier ends.
        """
        try:
            with self._access.connection() as connection:
                response = connection.request("HEAD", f"/models/{digest}")
                connection.check(response, "asking for the model", 200)
                response.read()
        except LineError:
            return True
        except RefusedError as error:
            return error.status != http.HTTPStatus.NOT_FOUND
        return True

    def is_there(self, task: str, digest: str) -> bool:
        """Whether the server has the whole of an update.

        Raises:
            RefusedError: it does not take one for this task (any more).
            StoppedError: the courier ends.
        """

        def ask() -> bool:
            with self._access.connection() as connection:
                response = connection.request("HEAD", f"/updates/{task}/{digest}")
                connection.check(response, "asking for the update", 200)
                response.read()
                return is_complete(response)

        return self._retries.until_done("asking for the update", ask)


class VerifiedFile:
    """A file whose content was hashed, and that has not been touched since."""

    def __init__(self, path: Path, file: FileIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self._seen = _fingerprint(file)

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fills a buffer, and sees that what it holds is what was hashed.

        Raises:
            GivenUpError: the file was written to or removed meanwhile.
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

    Raises:
        GivenUpError: it is missing, or holds something else than its name says.
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


def file_digest(file: FileIO) -> str:
    """SHA-256 of a file from its beginning; the file is then at its end."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(min(HASH_BYTES, BUFFER_BYTES)))
    file.seek(0)
    while count := file.readinto(buffer):
        total.update(buffer[:count])
    return total.hexdigest()


def is_complete(response: http.client.HTTPResponse) -> bool:
    """Whether an answer says that the server has the whole update."""
    return response.getheader("upload-complete", "").strip() == "?1"


def part_name(digest: str) -> str:
    """The name of the file in which a model waits until it is whole."""
    return f".{digest}.part"


class _Download:
    """One model on its way; what was hashed is kept over attempts."""

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
        """Lets go of the part."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def attempt(self) -> None:
        """Goes on until the file is whole.

        Raises:
            LineError, OutputError: it broke off; another attempt goes on from there.
            RefusedError, GivenUpError: no attempt will do.
        """
        self._open()
        began_at, began = self._at, time.monotonic()
        # It may have become whole in the moment before the process was killed.
        if self._hash.hexdigest() != self._digest:
            self._fetch()
        if self._hash.hexdigest() != self._digest:
            self._start_anew()
            self._damaged += 1
            if self._damaged >= MOST_DAMAGED:
                raise GivenUpError(
                    f"{self._what}: came damaged {MOST_DAMAGED} times",
                    Failure(ErrorCode.BAD_TASK, "DamagedDownloadError"),
                )
            raise LineError(f"{self._what}: came damaged (its SHA-256 is not its name)")
        with _disk(self._target):
            self._part.replace(self._target)
        self.close()
        _tell(self._what, "fetched", self._at - began_at, time.monotonic() - began)

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
            log.info("%s: goes on from byte %d", self._what, self._at)

    def _start_anew(self) -> None:
        self.close()
        self._at = 0
        with _disk(self._part):
            self._part.unlink(missing_ok=True)

    def _fetch_window(self, connection: Connection) -> bool:
        """One request; whether the file is whole now."""
        if self._pace.has_hours:
            self._pace.wait_for_hours(self._size(connection), self._what)
        last = self._at + self._pace.window - 1
        response = connection.request("GET", self._path, {"range": f"bytes={self._at}-{last}"})
        if response.status == 416:
            self._start_anew()
            raise LineError(f"{self._what}: what had arrived of it was longer than the file, so of another")
        connection.check(response, self._what, 200, 206)
        end, total = self._expected(response, last)
        self._receive(connection, response, end)
        return self._at == total

    def _expected(self, response: http.client.HTTPResponse, last: int) -> tuple[int, int]:
        """Up to where the answer's body goes, and the size of the whole file."""
        length = response.length
        if response.status == 200 and length is not None:
            if self._at:
                self._start_anew()
                raise LineError(f"{self._what}: the server sends no parts of files, so it is fetched anew")
            return length, length
        found = _CONTENT_RANGE.fullmatch(response.getheader("content-range", ""))
        if found is not None and length is not None:
            first, until, total = (int(number) for number in found.groups())
            if first == self._at <= until <= last and until < total and length == until - first + 1:
                return until + 1, total
        raise LineError(f"{self._what}: the server sends another part than the one that was asked for")

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


class _Upload:
    """One update on its way."""

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

        Raises:
            LineError: it broke off; another attempt goes on from there.
            RefusedError, GivenUpError: no attempt will do.
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
            _tell(self._what, "sent", self._file.size - first, time.monotonic() - began)

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


def _tell(what: str, done: str, count: int, seconds: float) -> None:
    megabytes = count / 1e6
    log.info("%s: %s, %.1f MB in %.2f s (%.0f MB/s)", what, done, megabytes, seconds, megabytes / max(seconds, 1e-9))


def _fingerprint(file: FileIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink


def _not_as_promised(path: Path, problem: str) -> GivenUpError:
    return GivenUpError(
        f"{path}: {problem}; nothing of it is sent any more", Failure(ErrorCode.INTERNAL, "OutboxFileError")
    )


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turns errors of the disk into an ``OutputError``, which is waited out."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None
