"""How much of the gateway one site may take, so that the others keep theirs."""

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
        that a site may have open at the same time.
    signed_texts
        requests of a site within the time that its clock may be off (``common.identity``).
    updates
        that may lie here of a site at the same time, whole or not, each as large as a task wants it.
    transfer_bytes
        of a file, in one request.
    fleet_bytes
        of a Fleet call.
    heartbeat_bytes
        of a sign of life.
    pause_seconds
        within which some byte of a body must come.
    bytes_per_second
        at which a body must come on average, and an answer be taken, after ``grace_seconds``.
    wait_seconds
        for which a site may let its question for messages wait.
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
    """A request that is being worked on, which ``end`` can break off.

    Parameters
    ----------
    site
        that sent it.
    timeout
        around the work on it.
    limits
        that hold for it.
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
        """Breaks the request off, with this answer."""
        if self.refusal is None:
            self.refusal = refusal
            with contextlib.suppress(RuntimeError):  # it is over already
                self._timeout.reschedule(asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """While its body is received; gives what is to be called with the size of each portion."""
        self._began = self._last = time.monotonic()
        self._has_body = True
        try:
            yield self._note
        finally:
            self._has_body = False

    @property
    def is_too_slow(self) -> bool:
        """Whether its body has stopped, or trickles."""
        if not self._has_body:
            return False
        now, limits = time.monotonic(), self._limits
        allowed = limits.grace_seconds + self._received / limits.bytes_per_second
        return now - self._last > limits.pause_seconds or now - self._began > allowed

    def _note(self, size: int) -> None:
        self._received += size
        self._last = time.monotonic()


class Quotas:
    """Counts what each site has open.

    Parameters
    ----------
    limits
        that hold for each.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[str, set[OpenRequest]] = {}
        self._uploads: Counter[str] = Counter()

    @contextlib.contextmanager
    def request(self, request: OpenRequest) -> Iterator[None]:
        """While a request is worked on.

        Raises
        ------
        RefusedError
            the site has too many.
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
        """While a site sends an update.

        Raises
        ------
        RefusedError
            it sends too many already.
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
        """All requests that are being worked on."""
        return [request for opened in self._open.values() for request in opened]
