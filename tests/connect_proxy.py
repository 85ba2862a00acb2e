"""An outbound proxy as hospitals have one: connects on request, wants a password, or opens TLS."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ConnectProxy:
    """Counts what it was asked for, and keeps what went wrong.

    Args:
        login: ``user:password`` that it wants; empty for none.
        opens: with which it answers TLS itself, in the server's place.
        status: what it answers a request that it would otherwise fulfil.
    """

    def __init__(self, login: str, opens: ssl.SSLContext | None, status: int) -> None:
        self.targets: list[str] = []
        self.errors: list[str] = []
        self._login = login
        self._opens = opens
        self._status = status

    def serve(self, client: socket.socket) -> None:
        """One connection, until an end hangs up."""
        try:
            self._serve(client)
        except OSError as error:
            self.errors.append(repr(error))

    def _serve(self, client: socket.socket) -> None:
        with client:
            # Long: on a busy machine a handshake may wait for its turn.
            client.settimeout(60)
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(4096)
                if not part:
                    return
                head += part
            first, *headers = head.decode().split("\r\n")
            target = first.split()[1]
            wanted = f"Basic {base64.b64encode(self._login.encode()).decode()}"
            if self._login and f"Proxy-Authorization: {wanted}" not in headers:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            self.targets.append(target)
            client.sendall(f"HTTP/1.1 {self._status} Whatever\r\n\r\n".encode())
            if self._status != 200:
                return
            if self._opens is not None:
                with self._opens.wrap_socket(client, server_side=True) as opened:
                    opened.recv(1)
                return
            host, _, port = target.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), timeout=60) as server:
                back = threading.Thread(target=_pass_on, args=(server, client))
                back.start()
                _pass_on(client, server)
                back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def connect_proxy(
    login: str = "", opens: ssl.SSLContext | None = None, status: int = 200
) -> Iterator[tuple[int, ConnectProxy]]:
    """A proxy on a port of 127.0.0.1."""
    proxy = ConnectProxy(login, opens, status)
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    thread = threading.Thread(target=proxy.serve, args=(listener.accept()[0],))
                    threads.append(thread)
                    thread.start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1], proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()
