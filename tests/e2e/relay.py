"""A TCP relay between a site and the server: a firewall that the test opens and closes, and that counts bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from common.system.supervisor import free_port

CHUNK_BYTES = 16 * 1024
WAIT_SECONDS = 60.0


class Relay:
    """Passes connections on to a port of this machine.

    Args:
        target: the port.
        address: of this machine, on which both ports are.

    Attributes:
        port: where it listens itself.
        sent: bytes that came from the site and were passed on.
        stalled: set while something is held back (``stall_after``).
    """

    def __init__(self, target: int, address: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.sent = 0
        self.stalled = threading.Event()
        self._address = address
        self._target = target
        self._lock = threading.Lock()
        self._stall_at: int | None = None
        self._stalls_answers = False
        self._is_deaf = False
        self._goes_on = threading.Event()
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()

    def open(self) -> None:
        """Lets connections through."""
        self._is_deaf = False
        if self._listener is not None:
            return
        listener = socket.create_server((self._address, self.port))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self, deaf: bool = False) -> None:
        """Drops all connections and refuses new ones; if ``deaf``, accepts them first, as some firewalls do."""
        self._is_deaf = deaf
        if self._listener is not None and not deaf:
            # Only this wakes the thread that waits for connections.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.go_on()

    def stall_after(self, sent: int, answers: bool = False) -> None:
        """Passes on so many further bytes from the site, and then nothing more from it, whatever the connection.

        With ``answers`` it is the server's answers that are held back from then on.
        """
        with self._lock:
            self._goes_on.clear()
            self._stall_at, self._stalls_answers = self.sent + sent, answers

    def go_on(self) -> None:
        """Ends the stall."""
        with self._lock:
            self._stall_at = None
            self.stalled.clear()
            self._goes_on.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                site, _ = listener.accept()
            except OSError:
                return
            if self._is_deaf:
                site.close()
                continue
            try:
                server = socket.create_connection((self._address, self._target))
            except OSError:
                site.close()
                continue
            with self._lock:
                self._connections |= {site, server}
            for source, sink, is_sent in ((site, server, True), (server, site, False)):
                threading.Thread(target=self._pump, args=(source, sink, is_sent), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_sent: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._hold_back(is_sent)
                sink.sendall(data)
                if is_sent:
                    with self._lock:
                        self.sent += len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._connections -= {source, sink}

    def _hold_back(self, is_sent: bool) -> None:
        with self._lock:
            reached = self._stall_at is not None and self.sent >= self._stall_at
            holds = reached and is_sent is not self._stalls_answers
        if holds:
            self.stalled.set()
            self._goes_on.wait(WAIT_SECONDS)


@contextlib.contextmanager
def relay(target: int, address: str = "127.0.0.1") -> Iterator[Relay]:
    """An open relay to a port of this machine."""
    made = Relay(target, address)
    made.open()
    try:
        yield made
    finally:
        made.close()
