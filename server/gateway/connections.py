"""Limits each site's connections, and closes those of revoked sites and slow clients.

Granian tells an application neither when a connection closes nor how much of an answer was delivered. The sockets
still belong to this process, so the system can list them and shut them down.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.config.network import format_endpoint
from server.gateway.quotas import Limits
from server.gateway.refusals import RefusedError

_OWN_FILES = Path("/proc/self/fd")


class Connections:
    """Connections that have carried an authenticated request, by the client's address.

    Only Linux lists a process's sockets; elsewhere there is no limit, and nothing is closed.

    Parameters
    ----------
    port
        The port the gateway listens on.
    limits
        The limits for each site.
    """

    def __init__(self, port: int, limits: Limits) -> None:
        self._port = port
        self._limits = limits
        self._owners: dict[str, str] = {}
        self._overdue_at: dict[str, float] = {}

    def note_request(self, client: str, site: str) -> None:
        """Record a site's request on a connection; any earlier answer there has been delivered.

        Parameters
        ----------
        client
            The client's host:port.
        site
            The site that signed the request.

        Raises
        ------
        RefusedError
            The site has too many connections.
        """
        self._overdue_at.pop(client, None)
        if self._owners.get(client) == site:
            return
        if self._count(site) >= self._limits.connections:
            self._forget_closed()
        if self._count(site) >= self._limits.connections:
            raise RefusedError(429, "connections")
        self._owners[client] = site

    def note_download(self, client: str, size: int) -> None:
        """Record that an answer of ``size`` bytes is being sent."""
        if client in self._owners:
            seconds = self._limits.grace_seconds + size / self._limits.bytes_per_second
            self._overdue_at[client] = time.monotonic() + seconds

    def shut(self, is_admitted: Callable[[str], bool]) -> None:
        """Shut down the connections of revoked sites, and of clients that read an answer too slowly.

        Parameters
        ----------
        is_admitted
            Returns whether the site of a name is admitted.
        """
        self._forget_closed()
        now = time.monotonic()
        admitted = {site: is_admitted(site) for site in set(self._owners.values())}
        unwanted = {client for client, site in self._owners.items() if not admitted[site]}
        unwanted |= {client for client, end in self._overdue_at.items() if end < now}
        if unwanted:
            for client, connection in _own_connections(self._port):
                if client in unwanted:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def _count(self, site: str) -> int:
        return sum(owner == site for owner in self._owners.values())

    def _forget_closed(self) -> None:
        if not self._owners:
            return
        still = {client for client, _ in _own_connections(self._port)}
        self._owners = {client: site for client, site in self._owners.items() if client in still}
        self._overdue_at = {client: end for client, end in self._overdue_at.items() if client in still}


def _own_connections(port: int) -> Iterator[tuple[str, socket.socket]]:
    """Yield the peer address and socket of every open connection to a port of this process.

    Granian's threads may close a descriptor and reuse its number at any moment, so this works on a duplicate.
    """
    try:
        numbers = [int(path.name) for path in _OWN_FILES.iterdir()]
    except OSError:
        return
    for number in numbers:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            copy = os.dup(number)
        except OSError:
            continue
        with socket.socket(fileno=copy) as connection:
            try:
                is_ours = connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == port
                peer = connection.getpeername() if is_ours else None
            except OSError:  # a listening or closed socket
                continue
            if peer is not None:
                yield format_endpoint(str(peer[0]), int(peer[1])), connection
