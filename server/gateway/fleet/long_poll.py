"""Wakes requests that wait for a message when the server app rings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from server.run_store.gateway_folder import GatewayFolder

LOOK_SECONDS = 0.02
"""Between two looks at the files that the server app touches."""


class Waiting:
    """A request that waits for a message.

    Parameters
    ----------
    bell
        the file that is touched when there is one.

    Attributes
    ----------
    is_over
        whether it is to be answered now, message or not.
    """

    def __init__(self, bell: Path) -> None:
        self.is_over = False
        self._bell = bell
        self._heard = 0
        self._wake = asyncio.Event()

    def look(self) -> None:
        """Before SuperLink is asked: what is rung from now on wakes the request."""
        self._heard = self._stamp()

    def look_again(self) -> None:
        """Wakes the request if there was a ring since."""
        if self._stamp() != self._heard:
            self._wake.set()

    def end(self) -> None:
        """Whoever asked is gone, asks elsewhere, or is to be told that there is nothing."""
        self.is_over = True
        self._wake.set()

    async def wait(self, seconds: float) -> None:
        """Returns when it is rung for or over, or after a time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()

    def _stamp(self) -> int:
        try:
            return self._bell.stat().st_mtime_ns
        except OSError:
            return 0


class Bells:
    """All requests that wait; of one node only the newest, since an earlier one's line may be dead.

    Parameters
    ----------
    folder
        of the gateway.
    """

    def __init__(self, folder: GatewayFolder) -> None:
        self._folder = folder
        self._waiting: dict[int, Waiting] = {}
        self._is_any = asyncio.Event()
        self._is_stopped = False

    @contextlib.contextmanager
    def waiting(self, node: int) -> Iterator[Waiting]:
        """While a request waits."""
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
        """Ends all, also those that come later."""
        self._is_stopped = True
        for entry in self._waiting.values():
            entry.end()

    async def run(self) -> None:
        """Looks at the files, for ever; they are few, and looking at one takes a microsecond."""
        while True:
            self._is_any.clear()
            if not self._waiting:
                await self._is_any.wait()
            await asyncio.sleep(LOOK_SECONDS)
            for entry in self._waiting.values():
                entry.look_again()
