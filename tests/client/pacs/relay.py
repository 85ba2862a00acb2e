"""A line to a peer that breaks: it passes on what both sides say, until so many bytes have come from the peer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Fault = Literal["silence", "close", "reset"]
_RESET = struct.pack("ii", 1, 0)


@contextmanager
def relay(to_port: int, fault: Fault, after_bytes: int, times: int = 10**6) -> Iterator[int]:
    """Listen on 127.0.0.1 while the block lasts.

    Parameters
    ----------
    to_port
        The peer's.
    fault
        What happens: nothing more comes, the line is closed, or it is reset.
    after_bytes
        Of a connection, from the peer.
    times
        How many connections break; later ones do not.

    Returns
    -------
    Iterator[int]
        Its port.
    """
    left = [times]
    open_sockets: list[socket.socket] = []

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                peer = socket.create_connection(("127.0.0.1", to_port))
                open_sockets.extend((client, peer))
                limit = after_bytes if left[0] > 0 else 2**62
                left[0] -= 1
                _thread(_copy, client, peer, 2**62, "close")
                _thread(_copy, peer, client, limit, fault)

    with socket.create_server(("127.0.0.1", 0)) as server:
        _thread(serve, server)
        try:
            yield server.getsockname()[1]
        finally:
            for one in [server, *open_sockets]:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


def _thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, limit: int, fault: Fault) -> None:
    """Copy until the line breaks, or one side ends."""
    with contextlib.suppress(OSError):
        while limit and (data := source.recv(min(limit, 2**14))):
            target.sendall(data)
            limit -= len(data)
        if not limit and fault == "silence":
            return
        if not limit and fault == "reset":
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            target.close()
            return
        target.shutdown(socket.SHUT_RDWR)
