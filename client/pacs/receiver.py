"""The side that is called: C-ECHO and C-STORE for known peers, with a bound on everything that a peer can send."""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from socketserver import BaseServer
from typing import Any, Self
from weakref import WeakKeyDictionary

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import (
    AE,
    ALL_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    VerificationPresentationContexts,
    build_context,
    evt,
)
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.transport import ThreadedAssociationServer

from client.pacs.bounded_socket import BoundedTlsSocket, bounded_socket
from common.errors import OutputError
from common.formatting import visible

log = logging.getLogger("fedvox.pacs")
# It logs what peers name, and a traceback for every broken connection; what matters is logged here.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

SUCCESS, OUT_OF_RESOURCES, OTHER_KIND = 0x0000, 0xA700, 0x0122
MISMATCH, NOT_UNDERSTOOD, FAILED = 0xA900, 0xC000, 0x0110
"""Answers to a C-STORE: stored; disk or queue full; SOP class not supported; not as announced; no DICOM; a bug."""
CONNECTIONS_PER_ASSOCIATION = 4
"""Connections that are kept for each association that is allowed; all others are closed at once."""
LONGEST_SILENCE_SECONDS = 10.0
"""Between a connection and its request for an association (ARTIM)."""
_PERMANENT, _BY_USER, _CALLING_UNKNOWN, _CALLED_UNKNOWN = 1, 1, 3, 7
_LONGEST_COMMENT = 64
_QUIET_SECONDS = 1.0
_MOST_WAITING_REQUESTS = 2

Network = IPv4Network | IPv6Network


class NotStoredError(Exception):
    """An instance is not taken.

    Attributes
    ----------
    status
        Answer to the peer.
    reason
        For the log, and shortened for the peer; without names and numbers of patients.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class AllowedPeer:
    """Who may call: an AE title, from some addresses."""

    ae_title: str
    networks: tuple[Network, ...]


@dataclass(eq=False)
class Line:
    """An association, for those who ask whether more is coming.

    Attributes
    ----------
    heard
        When the last PDU came, by ``time.monotonic``.
    received
        Bytes of the message that is coming.
    """

    heard: float = field(default_factory=time.monotonic)
    received: int = 0


@dataclass(frozen=True)
class Arrival:
    """An instance as it came.

    Attributes
    ----------
    kind, uid
        SOP class and instance UID as the peer announced them: any text.
    peer
        AE title of the peer.
    content
        The instance as a DICOM file.
    line
        Over which it came; None if that is not known.
    """

    kind: str
    uid: str
    peer: str
    content: bytes
    line: Line | None = None


@dataclass(frozen=True)
class ReceiverSettings:
    """Who may call, and how much may come.

    Attributes
    ----------
    ae_title
        Ours; a peer must call it.
    address, port
        Where to listen; port 0 chooses a free one.
    peers
        Who may call.
    tls
        From ``bounded_socket.server_context``; None for plain DICOM.
    longest_pdu
        Bytes of a PDU, as announced to the peer.
    most_associations
        At the same time.
    largest_instance
        Bytes of an instance; every association may hold two copies of one in memory.
    timeout_seconds
        Until a silent peer is dropped, and for a whole PDU to arrive.
    """

    ae_title: str
    address: str
    port: int
    peers: tuple[AllowedPeer, ...]
    tls: ssl.SSLContext | None = None
    longest_pdu: int = 2**18
    most_associations: int = 10
    largest_instance: int = 2**29
    timeout_seconds: float = 60.0


class Receiver:
    """Listens while its block lasts.

    Parameters
    ----------
    settings
        Who may call, and how much may come.
    keep
        Called for every instance, from several threads at once; the peer is told of success when it returns.
        ``NotStoredError`` and ``OutputError`` (out of resources) refuse the instance.
    heard
        Called for every PDU of an instance, from several threads at once.

    Raises
    ------
    OSError
        The address cannot be listened on.
    """

    def __init__(
        self,
        settings: ReceiverSettings,
        keep: Callable[[Arrival], None],
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._keep = keep
        self._heard = heard
        self._lines: WeakKeyDictionary[Association, Line] = WeakKeyDictionary()
        entity = AE(settings.ae_title)
        entity.maximum_pdu_size = settings.longest_pdu
        entity.maximum_associations = settings.most_associations
        entity.dimse_timeout = entity.network_timeout = settings.timeout_seconds
        entity.acse_timeout = min(settings.timeout_seconds, LONGEST_SILENCE_SECONDS)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._admit),
            (evt.EVT_REJECTED, self._tell_of_rejection),
            (evt.EVT_PDU_RECV, self._count),
            (evt.EVT_DIMSE_RECV, self._count_anew),
            (evt.EVT_C_STORE, self._store),
        ]
        self._server = _Server(settings, entity, handlers)
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        """Listen from now on."""
        self._thread.start()
        return self

    @property
    def is_listening(self) -> bool:
        """Whether it hears peers."""
        return self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        """Listen no more, and abort what is under way."""
        for association in self._server.active_associations:
            if association.is_established:
                association.abort()
        self._server.end()

    def _admit(self, event: Event) -> None:
        """Reject a peer that is not known, before anything is negotiated."""
        request: Any = event.assoc.requestor.primitive
        calling, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        address = event.assoc.requestor.address
        if called != self._settings.ae_title:
            reason, diagnostic = f"it called {visible(called)!r}", _CALLED_UNKNOWN
        elif not is_allowed(self._settings.peers, address, calling):
            reason, diagnostic = "it is not among the peers", _CALLING_UNKNOWN
        else:
            return
        log.warning("refused %r at %s: %s", calling, address, reason)
        event.assoc.acse.send_reject(_PERMANENT, _BY_USER, diagnostic)
        event.assoc.kill()

    def _tell_of_rejection(self, event: Event) -> None:
        most = self._settings.most_associations
        log.warning("refused %r: %d associations at once are enough", event.assoc.requestor.ae_title, most)

    def _count(self, event: Event) -> None:
        """Abort an association whose instance is too large, or that does not wait for answers."""
        if not isinstance(event.pdu, P_DATA_TF):
            return
        self._heard()
        line = self._line(event)
        line.heard = time.monotonic()
        line.received += event.pdu.pdu_length
        if line.received > self._settings.largest_instance:
            problem = f"an instance of more than {self._settings.largest_instance:,} bytes"
        elif event.assoc.dimse.msg_queue.qsize() >= _MOST_WAITING_REQUESTS:
            problem = "further requests before the answer to the last"
        else:
            return
        log.warning("dropped %r: %s", event.assoc.requestor.ae_title, problem)
        event.assoc.abort()

    def _count_anew(self, event: Event) -> None:
        self._line(event).received = 0

    def _line(self, event: Event) -> Line:
        return self._lines.setdefault(event.assoc, Line())

    def _store(self, event: Event) -> Dataset:
        """Answer a C-STORE."""
        request: Any = event.request
        peer = event.assoc.requestor.ae_title
        answer = Dataset()
        answer.Status = SUCCESS
        try:
            if not isinstance(request, C_STORE):  # any request may name a class of storage
                raise NotStoredError(NOT_UNDERSTOOD, "the request is no C-STORE")
            kind, uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
            self._keep(Arrival(kind, uid, peer, event.encoded_dataset(), self._line(event)))
        except NotStoredError as error:
            answer.Status, reason = error.status, error.reason
        except OutputError as error:
            answer.Status, reason = OUT_OF_RESOURCES, str(error)
        except Exception:
            answer.Status, reason = FAILED, "internal error"
            log.exception("an instance of %r was not stored", peer)
        else:
            return answer
        log.warning("refused an instance of %r with status %04X: %s", peer, answer.Status, reason)
        if answer.Status != OUT_OF_RESOURCES:  # the reason of which has our paths
            answer.ErrorComment = reason.encode("ascii", "replace").decode()[:_LONGEST_COMMENT]
        return answer


class _Contexts(list[Any]):
    """Presentation contexts, which nobody changes; a true copy of all would cost each connection 0.15 s."""

    def __deepcopy__(self, memo: object) -> Self:
        return self


@functools.cache
def supported_contexts() -> Sequence[Any]:
    """List what may be proposed: verification, and all storage classes in all transfer syntaxes.

    Of the syntaxes of one proposal, one without compression is preferred.
    """
    offered = (*VerificationPresentationContexts, *AllStoragePresentationContexts)
    syntaxes = sorted(ALL_TRANSFER_SYNTAXES, key=lambda syntax: syntax != ExplicitVRLittleEndian)
    return _Contexts(build_context(one.abstract_syntax, syntaxes) for one in offered if one.abstract_syntax)


def is_allowed(peers: Sequence[AllowedPeer], address: str, ae_title: str | None = None) -> bool:
    """Return whether somebody at an address may call, under one AE title or, without it, under any."""
    caller = ip_address(address)
    caller = getattr(caller, "ipv4_mapped", None) or caller
    return any(
        ae_title in (None, peer.ae_title) and any(caller in network for network in peer.networks) for peer in peers
    )


def _has_spoken(connection: socket.socket, seconds: float) -> bool:
    """Wait for the first bytes of a peer, and leave them; return whether some came."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    if not poll.poll(1000 * seconds):
        return False
    # Under TLS a peer has shown a certificate, and nothing can be left.
    return isinstance(connection, ssl.SSLSocket) or bool(socket.socket.recv(connection, 1, socket.MSG_PEEK))


class _Server(ThreadedAssociationServer):
    """Drops strangers first, and lets no peer keep it from accepting others."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, settings: ReceiverSettings, entity: AE, handlers: list[Any]) -> None:
        self._settings = settings
        self._connections: list[Any] = []
        self._refused, self._quiet_until = 0, 0.0
        address = (settings.address, settings.port)
        contexts: Any = supported_contexts()
        super().__init__(entity, address, settings.ae_title, contexts, evt_handlers=handlers)

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection, without the TLS handshake, which a peer could prolong."""
        listening: Any = self.socket
        client, address = listening.accept()
        limits = self._settings
        return bounded_socket(client, limits.tls, limits.longest_pdu, limits.timeout_seconds), address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether a connection is kept: from an address of a peer, and not one too many."""
        address = client_address[0]
        self._connections = [one for one in self._connections if one.fileno() >= 0]
        if not is_allowed(self._settings.peers, address):
            return self._refuse(address, "no peer has this address")
        if len(self._connections) >= CONNECTIONS_PER_ASSOCIATION * self._settings.most_associations:
            return self._refuse(address, "too many at once")
        self._connections.append(request)
        return True

    def _refuse(self, address: str, reason: str) -> bool:
        """Log a refusal, but not each of a flood."""
        self._refused += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            log.warning("refused a connection from %s: %s (%d so far)", address, reason, self._refused)
        return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Begin an association; runs in a thread of its own."""
        try:
            if isinstance(request, BoundedTlsSocket):
                request.do_handshake()
            if _has_spoken(request, min(self._settings.timeout_seconds, LONGEST_SILENCE_SECONDS)):
                super().finish_request(request, client_address)
            else:  # a port monitor, which takes no association away from others
                self.shutdown_request(request)
        except OSError as error:
            log.warning("a connection from %s failed: %s", client_address[0], error.strerror or error)
            self.shutdown_request(request)

    def end(self) -> None:
        """Listen no more."""
        BaseServer.shutdown(self)
        self.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
