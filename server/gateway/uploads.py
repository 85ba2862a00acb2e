"""``HEAD`` and ``PATCH /updates/TASK/SHA256``: resumable upload of a site's update for an open task.

Follows the IETF draft on resumable uploads: the client queries the offset and appends from there. A new request aborts
an earlier upload of the same update, which may hang on a broken connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from server.gateway.answers import Answer
from server.gateway.part import Part, part_path
from server.gateway.quotas import OpenRequest, Quotas
from server.gateway.refusals import RefusedError
from server.run_store.gateway_folder import GatewayFolder, OpenTask

SPARE = ".spare"
BATCH_BYTES = 2**20
"""Bytes written at once while the next batch arrives; each upload holds two batches in memory."""
FORGET_SECONDS = 120.0
"""Idle time after which a partial upload's hash state is dropped; the next request hashes the file again."""
_NUMBER = re.compile(r"\d{1,18}")
_DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
T = TypeVar("T")


@dataclass
class _Entry:
    """An upload in progress.

    Attributes
    ----------
    lock
        Held by the request that is working on the upload.
    appending
        That request, if it appends.
    arrivals
        The number of requests so far.
    waiting
        The number of requests that hold the lock or wait for it.
    used
        When the last request ended.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    appending: OpenRequest | None = None
    arrivals: int = 0
    waiting: int = 0
    part: Part | None = None
    used: float = 0.0


class Uploads:
    """Receives updates.

    Parameters
    ----------
    folder
        The gateway's folder.
    quotas
        The sites' quotas.
    threads
        The executor for hashing and disk access.
    """

    def __init__(self, folder: GatewayFolder, quotas: Quotas, threads: Executor) -> None:
        self._folder = folder
        self._quotas = quotas
        self._threads = threads
        self._entries: dict[tuple[str, str], _Entry] = {}

    async def head(self, request: OpenRequest, task_name: str, digest: str) -> Answer:
        """Answer with an update's upload offset.

        Raises
        ------
        RefusedError
            The site has no such open task, or the task expects no update.
        """
        site = request.site.name
        task = await self._in_thread(lambda: self._task(site, task_name))
        async with self._exclusive(request, digest, appends=False):
            return await self._in_thread(lambda: self._status(site, digest, task))

    async def patch(
        self,
        request: OpenRequest,
        task_name: str,
        digest: str,
        headers: Mapping[str, str],
        body: AsyncIterable[bytes],
    ) -> Answer:
        """Append a body to an update.

        Parameters
        ----------
        request
            The site's request.
        task_name
            The task in the request's path.
        digest
            The SHA-256 in the request's path.
        headers
            The request's headers; ``upload-offset``, ``upload-length`` and ``content-length`` are required.
        body
            The body's chunks. It ends before ``content-length`` if the connection broke.

        Raises
        ------
        RefusedError
            The body was not stored, or only in part.
        """
        site = request.site.name
        task = await self._in_thread(lambda: self._task(site, task_name))
        offset, length, size = (_number(headers, name) for name in ("upload-offset", "upload-length", "content-length"))
        if length != task.update_bytes or size > min(self._quotas.limits.transfer_bytes, max(0, length - offset)):
            raise RefusedError(413, "too-large")
        async with self._exclusive(request, digest, appends=True) as entry:
            progress = await self._in_thread(lambda: self._status(site, digest, task))
            if progress.status == 200 and "upload-complete" in progress.headers:
                return Answer(201, progress.headers)
            with self._quotas.upload(site), _disk_full_refused():
                part = await self._open(entry, site, digest, length)
                if part.size != offset:
                    raise RefusedError(409, "offset", {"upload-offset": str(part.size)})
                await self._receive(request, part, size, body)
                return await self._finish(entry, part)

    def close_idle(self, seconds: float = FORGET_SECONDS) -> None:
        """Close the partial files of uploads that were idle for ``seconds``; the files stay on disk."""
        now = time.monotonic()
        self._close_entries(lambda _, entry: now - entry.used > seconds)

    def _close_entries(self, condition: Callable[[str, _Entry], bool]) -> None:
        for (site, digest), entry in list(self._entries.items()):
            if not entry.waiting and condition(site, entry):
                if entry.part is not None:
                    entry.part.close()
                del self._entries[site, digest]

    @contextlib.asynccontextmanager
    async def _exclusive(self, request: OpenRequest, digest: str, appends: bool) -> AsyncIterator[_Entry]:
        """Hold the upload's lock; any later request aborts an append that is running or waiting."""
        key = request.site.name, digest
        entry = self._entries.setdefault(key, _Entry())
        if entry.appending is not None:
            entry.appending.end(_superseded())
        entry.arrivals += 1
        arrival = entry.arrivals
        entry.waiting += 1
        try:
            async with entry.lock:
                if appends and arrival != entry.arrivals:
                    raise _superseded()
                entry.appending = request if appends else None
                try:
                    yield entry
                finally:
                    entry.appending = None
        finally:
            entry.waiting -= 1
            entry.used = time.monotonic()
            if entry.part is None and not entry.waiting:
                del self._entries[key]

    async def _open(self, entry: _Entry, site: str, digest: str, length: int) -> Part:
        def is_good(part: Part) -> bool:
            return part.length == length and part.is_in_place

        if entry.part is not None and not await self._in_thread(partial(is_good, entry.part)):
            entry.part.close()
            entry.part = None
        if entry.part is None:
            folder = self._folder.updates(site)
            busy = {name for (owner, name), other in self._entries.items() if owner == site and other.waiting}
            await self._in_thread(lambda: make_room(folder, digest, busy, self._quotas.limits.updates))
            self._close_entries(
                lambda owner, other: owner == site and other.part is not None and not other.part.is_in_place
            )
            entry.part = await self._in_thread(lambda: Part(folder, digest, length))
        return entry.part

    async def _receive(self, request: OpenRequest, part: Part, size: int, body: AsyncIterable[bytes]) -> None:
        """Write one batch while the next arrives; at most one write is pending."""
        batch: list[bytes] = []
        gathered = received = 0
        writing: asyncio.Future[None] | None = None
        loop = asyncio.get_running_loop()
        try:
            with request.receiving() as note:
                async for portion in body:
                    note(len(portion))
                    received += len(portion)
                    if received > size:
                        raise RefusedError(413, "too-large")
                    batch.append(portion)
                    gathered += len(portion)
                    if gathered >= BATCH_BYTES:
                        await _finish_write(writing)
                        writing = loop.run_in_executor(self._threads, _append, part, batch)
                        batch, gathered = [], 0
        finally:
            # Keep what arrived before the connection broke or the request was aborted.
            await _finish_write(writing)
            await _finish_write(loop.run_in_executor(self._threads, _append, part, batch))

    async def _finish(self, entry: _Entry, part: Part) -> Answer:
        if part.size < part.length:
            return Answer(202, {"upload-offset": str(part.size)})
        entry.part = None
        if not await self._in_thread(part.finish):
            raise RefusedError(422, "content")
        return Answer(201, {"upload-complete": "?1", "upload-offset": str(part.length)})

    def _task(self, site: str, name: str) -> OpenTask:
        for task in self._folder.open_tasks(site):
            if task.name == name and task.update_bytes > 0:
                return task
        raise RefusedError(404, "task")

    def _status(self, site: str, digest: str, task: OpenTask) -> Answer:
        folder = self._folder.updates(site)
        if _size(folder / digest) == task.update_bytes:
            return Answer(200, {"upload-complete": "?1", "upload-offset": str(task.update_bytes)})
        size = _size(part_path(folder, digest)) or 0
        return Answer(200, {"upload-offset": str(size if size <= task.update_bytes else 0)})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def make_room(folder: Path, digest: str, busy: set[str], most: int) -> None:
    """Make room for one more update of a site by deleting idle partial uploads, oldest first.

    Parameters
    ----------
    folder
        The folder of the site's updates.
    digest
        The new update's digest.
    busy
        Digests of partial uploads that must stay.
    most
        The most updates stored for a site, complete or partial.

    Raises
    ------
    RefusedError
        The site has too many updates.
    """
    others: list[tuple[float, Path]] = []
    # A dropped file that the server app's store kept for reuse; it may be as large as an update.
    (folder / SPARE).unlink(missing_ok=True)
    for file in folder.glob("*") if folder.is_dir() else ():
        if file.name not in (part_path(folder, digest).name, digest):
            with contextlib.suppress(OSError):
                others.append((file.stat().st_mtime, file))
    names = {part_path(folder, name).name for name in busy}
    idle = [file for _, file in sorted(others) if file.name.endswith(".part") and file.name not in names]
    excess = len(others) + 1 - most
    if excess > len(idle):
        raise RefusedError(429, "updates")
    for file in idle[: max(0, excess)]:
        file.unlink(missing_ok=True)


def _superseded() -> RefusedError:
    return RefusedError(409, "superseded")


def _append(part: Part, batch: list[bytes]) -> None:
    if batch and not part.is_in_place:
        # The server app removed the file, as it does when it starts; the task may still be open.
        raise RefusedError(409, "offset", {"upload-offset": "0"})
    part.append(batch)


async def _finish_write(job: asyncio.Future[None] | None) -> None:
    """Wait for a job in a thread, even if the request is aborted meanwhile."""
    if job is None:
        return
    try:
        await asyncio.wait({job})
    except asyncio.CancelledError:
        await asyncio.wait({job})
        raise
    job.result()


def _number(headers: Mapping[str, str], name: str) -> int:
    text = headers.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise RefusedError(411 if name == "content-length" else 400, "malformed")
    return int(text)


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


@contextlib.contextmanager
def _disk_full_refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_IS_FULL:
            raise RefusedError(507, "disk-full") from error
        raise
