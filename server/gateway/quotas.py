"""Quotas that keep one site from starving the others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.gateway.identity import Site
from server.gateway.refusals import RefusedError

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """All limits of the gateway.

    Attributes
    ----------
    requests, uploads, connections
        The most that a site may have open at the same time.
    signed_texts
        The most requests of a site within the permitted clock skew (``common.identity``).
    updates
        The most updates stored for a site, complete or partial, each of the size that its task sets.
    transfer_bytes
        The most bytes of a file in one request.
    fleet_bytes
        The largest body of a Fleet call.
    heartbeat_bytes
        The largest body of a heartbeat.
    pause_seconds
        The longest pause between two chunks of a body.
    bytes_per_second
        The lowest average rate of a body or an answer, after ``grace_seconds``.
    wait_seconds
        The longest duration of a long poll.
    """

    requests: int = 16
    uploads: int = 2
    connections: int = 64
    signed_texts: int = 65536
    updates: int = 4
    transfer_bytes: int = 64 * MEGABYTE
    fleet_bytes: int = 256 * 1024
    heartbeat_bytes: int = 8 * 1024
    pause_seconds: float = 30.0
    bytes_per_second: float = 8 * 1024
    grace_seconds: float = 60.0
    wait_seconds: float = 25.0


class OpenRequest:
    """A request in progress, which ``end`` can abort.

    Parameters
    ----------
    site
        The site that sent it.
    timeout
        The timeout around its handler.
    limits
        The limits that apply to it.
    """

    def __init__(self, site: Site, timeout: asyncio.Timeout, limits: Limits) -> None:
        self.site = site
        self.refusal: RefusedError | None = None
        self._timeout = timeout
        self._limits = limits
        self._received = 0
        self._began = self._last = 0.0
        self._has_body = False

    def end(self, refusal: RefusedError) -> None:
        """Abort the request with this answer."""
        if self.refusal is None:
            self.refusal = refusal
            with contextlib.suppress(RuntimeError):  # already finished
                self._timeout.reschedule(asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """Time the body while it is received; yield a function to call with the size of each chunk."""
        self._began = self._last = time.monotonic()
        self._has_body = True
        try:
            yield self._note
        finally:
            self._has_body = False

    @property
    def is_too_slow(self) -> bool:
        """Whether its body has stalled or is too slow."""
        if not self._has_body:
            return False
        now, limits = time.monotonic(), self._limits
        allowed = limits.grace_seconds + self._received / limits.bytes_per_second
        return now - self._last > limits.pause_seconds or now - self._began > allowed

    def _note(self, size: int) -> None:
        self._received += size
        self._last = time.monotonic()


class Quotas:
    """Counts each site's open requests and uploads.

    Parameters
    ----------
    limits
        The limits for each site.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[str, set[OpenRequest]] = {}
        self._uploads: Counter[str] = Counter()

    @contextlib.contextmanager
    def request(self, request: OpenRequest) -> Iterator[None]:
        """Count a request while it is handled.

        Raises
        ------
        RefusedError
            The site has too many open requests.
        """
        name = request.site.name
        opened = self._open.setdefault(name, set())
        if len(opened) >= self.limits.requests:
            raise RefusedError(429, "requests")
        opened.add(request)
        try:
            yield
        finally:
            opened.discard(request)
            if not opened:
                self._open.pop(name, None)

    @contextlib.contextmanager
    def upload(self, site: str) -> Iterator[None]:
        """Count an upload while a site sends it.

        Raises
        ------
        RefusedError
            The site has too many open uploads.
        """
        if self._uploads[site] >= self.limits.uploads:
            raise RefusedError(429, "uploads")
        self._uploads[site] += 1
        try:
            yield
        finally:
            self._uploads[site] -= 1
            if not self._uploads[site]:
                del self._uploads[site]

    def all_open(self) -> list[OpenRequest]:
        """Return all requests in progress."""
        return [request for opened in self._open.values() for request in opened]
