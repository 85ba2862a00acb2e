"""Long polling: wakes waiting requests when the server app touches a node's bell file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from server.run_store.gateway_folder import GatewayFolder

LOOK_SECONDS = 0.02
"""Interval between checks of the bell files."""


class Waiting:
    """A long poll.

    Parameters
    ----------
    bell
        The file that the server app touches when there is a message.

    Attributes
    ----------
    is_over
        Whether to answer now, with or without a message.
    """

    def __init__(self, bell: Path) -> None:
        self.is_over = False
        self._bell = bell
        self._heard = 0
        self._wake = asyncio.Event()

    def look(self) -> None:
        """Note the bell's state before asking SuperLink; any later change wakes the request."""
        self._heard = self._stamp()

    def look_again(self) -> None:
        """Wake the request if the bell changed since ``look``."""
        if self._stamp() != self._heard:
            self._wake.set()

    def end(self) -> None:
        """End the wait: the client hung up or polls anew, or the gateway stops."""
        self.is_over = True
        self._wake.set()

    async def wait(self, seconds: float) -> None:
        """Wait until the bell changes, the wait ends, or ``seconds`` pass."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()

    def _stamp(self) -> int:
        try:
            return self._bell.stat().st_mtime_ns
        except OSError:
            return 0


class Bells:
    """All long polls; only the newest of each node, as an earlier one's connection may be dead.

    Parameters
    ----------
    folder
        The gateway's folder.
    """

    def __init__(self, folder: GatewayFolder) -> None:
        self._folder = folder
        self._waiting: dict[int, Waiting] = {}
        self._is_any = asyncio.Event()
        self._is_stopped = False

    @contextlib.contextmanager
    def waiting(self, node: int) -> Iterator[Waiting]:
        """Register a long poll, and end the node's previous one."""
        entry = Waiting(self._folder.bell(node))
        former = self._waiting.get(node)
        if former is not None:
            former.end()
        self._waiting[node] = entry
        self._is_any.set()
        if self._is_stopped:
            entry.end()
        try:
            yield entry
        finally:
            if self._waiting.get(node) is entry:
                del self._waiting[node]

    def stop(self) -> None:
        """End all long polls, including later ones."""
        self._is_stopped = True
        for entry in self._waiting.values():
            entry.end()

    async def run(self) -> None:
        """Check the bell files until cancelled; they are few, and each check takes a microsecond."""
        while True:
            self._is_any.clear()
            if not self._waiting:
                await self._is_any.wait()
            await asyncio.sleep(LOOK_SECONDS)
            for entry in self._waiting.values():
                entry.look_again()
