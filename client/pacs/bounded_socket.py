"""Sockets on which a peer can send no PDU longer than announced, and none that takes for ever."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from pathlib import Path

from common.errors import ConfigError

LONGEST_ASSOCIATION_REQUEST = 2**20
"""Bytes of a request for an association with 128 presentation contexts, each in all transfer syntaxes, and to spare."""
_HEAD_BYTES = 6
_ASSOCIATION_REQUEST = 1


class Frames:
    """Follows what is read, PDU by PDU: pynetdicom reads a head of six bytes, then what this promises.

    Parameters
    ----------
    longest_pdu
        Bytes of a PDU after its head.
    seconds
        In which a PDU must arrive.
    """

    def __init__(self, longest_pdu: int, seconds: float) -> None:
        self._longest = longest_pdu
        self._seconds = seconds
        self._head = b""
        self._left = 0
        self._deadline = 0.0

    def follow(self, data: bytes) -> bytes:
        """Return what was read.

        Raises
        ------
        OSError
            The PDU is too long, or did not come in time: what follows cannot be understood.
        """
        if self._left:
            self._left -= len(data)
        else:
            if not self._head:
                self._deadline = time.monotonic() + self._seconds
            self._head += data
            if len(self._head) == _HEAD_BYTES:
                self._left, self._head = self._length(self._head), b""
        if (self._left or self._head) and time.monotonic() > self._deadline:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return data

    def _length(self, head: bytes) -> int:
        length = int.from_bytes(head[2:], "big")
        if length > (LONGEST_ASSOCIATION_REQUEST if head[0] == _ASSOCIATION_REQUEST else self._longest):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return length


class BoundedSocket(socket.socket):
    """A connected socket; made by ``bounded_socket``."""

    frames: Frames

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Read at most ``size`` bytes of a PDU."""
        return self.frames.follow(super().recv(size, flags))


class BoundedTlsSocket(ssl.SSLSocket):
    """The same under TLS, before its handshake; made by ``bounded_socket``."""

    frames: Frames | None = None
    """Set as soon as there is a connection."""

    def recv(self, size: int = 1024, flags: int = 0) -> bytes:
        """Read at most ``size`` bytes of a PDU."""
        data = super().recv(size, flags)
        return data if self.frames is None else self.frames.follow(data)


def server_context(certificate: Path, key: Path, authorities: Path) -> ssl.SSLContext:
    """Return the context for DICOM TLS: both sides show a certificate, and TLS 1.2 is the oldest version.

    Parameters
    ----------
    certificate, key
        Ours, in PEM; the certificate with those between it and its authority.
    authorities
        Who issues the certificates of peers, in PEM.

    Raises
    ------
    ConfigError
        A file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = BoundedTlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    for path in (certificate, key, authorities):
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such file")
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError):
        raise ConfigError(
            f"{certificate}, {key}: are no certificate and its key, in PEM and without password"
        ) from None
    try:
        context.load_verify_locations(authorities)
    except OSError:
        raise ConfigError(f"{authorities}: holds no certificates in PEM") from None
    return context


def bounded_socket(
    client: socket.socket, tls: ssl.SSLContext | None, longest_pdu: int, seconds: float
) -> BoundedSocket | BoundedTlsSocket:
    """Take over an accepted connection.

    Parameters
    ----------
    client
        The connection; not to be used afterwards.
    tls
        From ``server_context``, None for plain TCP. The handshake is left to the caller.
    longest_pdu
        Bytes of a PDU after its head of six bytes.
    seconds
        For a PDU to arrive, for every other wait, and for the handshake.

    Raises
    ------
    OSError
        The connection is gone.
    """
    client.settimeout(seconds)
    made: BoundedSocket | BoundedTlsSocket
    if tls is None:
        made = BoundedSocket(fileno=client.detach())
        made.settimeout(seconds)
    else:
        wrapped = tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        if not isinstance(wrapped, BoundedTlsSocket):
            raise TypeError("the context makes other sockets")
        made = wrapped
    made.frames = Frames(longest_pdu, seconds)
    return made
