"""A bound on how long a peer may be silent, and on how long a connection may last."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from common.formatting import counted


class Watch:
    """Shuts connections down while its block lasts: whoever waits for the peer, in whatever library, then goes on.

    Parameters
    ----------
    idle_seconds
        How long the peer may be silent; infinity if that does not matter.
    total_seconds
        How long all may take.
    """

    def __init__(self, idle_seconds: float, total_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._total_seconds = total_seconds
        self._begin = self._last = time.monotonic()
        self._held: list[socket.socket] = []
        self._calls: list[Callable[[], object]] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Shut down what is still open."""
        self._ended.set()
        self._thread.join()
        self._shut_down()
        for connection in self._held:
            connection.close()

    @property
    def reason(self) -> str:
        """Why connections were shut down; empty if they were not."""
        return self._reason

    @property
    def has_begun(self) -> bool:
        """Whether there was a connection."""
        return bool(self._held)

    def touch(self, *_: object) -> None:
        """Note that the peer sent or took something."""
        self._last = time.monotonic()

    def hold(self, connection: socket.socket) -> None:
        """Watch over a connection, from now on.

        Raises
        ------
        OSError
            It has been closed.
        """
        self.touch()
        # A descriptor of our own, since TLS takes that of a connection away, and a TLS socket that is shut down would
        # drop the state that another thread is reading with.
        own = socket.fromfd(connection.fileno(), connection.family, connection.type)
        with self._lock:
            self._held.append(own)
        if self._reason:
            self._shut_down()

    def wake(self, call: Callable[[], object]) -> None:
        """Call this, too, when connections are shut down for a reason: for who waits for something else than them."""
        self._calls.append(call)
        if self._reason:
            call()

    def end(self, reason: str) -> None:
        """Shut connections down now, for a reason of the caller's."""
        self._reason = self._reason or reason
        self._shut_down()
        for call in self._calls:
            call()

    def _run(self) -> None:
        while not self._ended.wait(max(0.0, self._left()[0])):
            left, reason = self._left()
            if left <= 0:
                self.end(reason)
                return

    def _left(self) -> tuple[float, str]:
        """Return the seconds until something is over, and what to say then."""
        now = time.monotonic()
        idle, total = self._last + self._idle_seconds - now, self._begin + self._total_seconds - now
        if idle < total:
            return idle, f"was silent for {counted(round(self._idle_seconds), 'second')}"
        return total, f"was not done after {counted(round(self._total_seconds), 'second')}"

    def _shut_down(self) -> None:
        with self._lock:
            for connection in self._held:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
