"""Connections: whoever takes too long to ask for something loses theirs, and no address takes all of them.

Without it, a few hundred connections that say nothing keep everybody else out.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from common.web.listening import is_here

MOST_CONNECTIONS = 200
MOST_OF_AN_ADDRESS = 64
"""Of another machine: on this one, everybody has the same address."""
REQUEST_SECONDS = 10.0
"""For the head of a request, and from an answer to the head of the next request."""


class Connection(H11Protocol):
    """uvicorn's, with both bounds."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or close it."""
        super().connection_made(cast(asyncio.Transport, transport))
        address = _address_of(self)
        of_the_same = sum(_address_of(other) == address for other in self.connections)
        if of_the_same > MOST_OF_AN_ADDRESS and not is_here(address):
            self.transport.abort()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        super().connection_lost(exc)
        self._stop_waiting()

    def data_received(self, data: bytes) -> None:
        """Take bytes; only the head of a new request is worth more time."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, even if the rest of the last one still comes."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before:
            self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _address_of(connection: object) -> str:
    client = getattr(connection, "client", None)
    return str(client[0]) if client else ""
