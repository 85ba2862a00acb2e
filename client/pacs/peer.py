"""The side that calls: associations with other application entities, none of which can keep the caller waiting."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import PresentationContext

# The class for Verification is made when its module is imported.
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from client.pacs.bounded_socket import BoundedTlsSocket, Frames, bounded_socket
from client.pacs.watch import Watch
from common.errors import FedvoxError
from common.formatting import visible

# It logs what peers send, and tracebacks for every broken connection; errors are raised here.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

MOST_CONTEXTS = 128
"""Presentation contexts that an association can have: their numbers are odd and fit into a byte."""
SUCCESS, WARNING = 0x0000, 0xB
"""Status of an answer; the first digit of those that are as good, but not quite what was asked for."""
_UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
LONGEST_PDU = 2**17
LARGEST_OBJECT = 2**32
"""Bytes of an object; one that comes by DICOM is held in memory."""
_LONGEST_COMMENT = 64

Handler = tuple[Any, Callable[..., Any]]
"""An event of pynetdicom, and what is called then."""


class PeerError(FedvoxError):
    """A peer cannot be reached, or does not do what it was asked for.

    Attributes
    ----------
    problem
        Continues "the peer ...".
    is_passing
        Whether the same may work later.
    """

    def __init__(self, peer: str, problem: str, is_passing: bool = True) -> None:
        self.problem = problem
        self.is_passing = is_passing
        super().__init__(visible(f"{peer} {problem}"))


class NothingAcceptedError(PeerError):
    """A peer accepts the association, but nothing that was proposed for it."""

    def __init__(self, peer: str) -> None:
        super().__init__(peer, "supports nothing of what was proposed", is_passing=False)


@dataclass(frozen=True)
class Peer:
    """An application entity to call.

    Attributes
    ----------
    title, host, port
        Its AE title and address.
    own_title
        The AE title that calls.
    tls
        For DICOM TLS; None for plain DICOM.
    idle_seconds
        How long it may be silent, and how long connecting may take.
    total_seconds
        How long an association may last.
    """

    title: str
    host: str
    port: int
    own_title: str = "FEDVOX"
    tls: ssl.SSLContext | None = None
    idle_seconds: float = 60.0
    total_seconds: float = 3600.0

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


@contextmanager
def associated(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    handlers: Sequence[Handler] = (),
    stored: Collection[str] = (),
    largest: int = LARGEST_OBJECT,
) -> Iterator[tuple[Association, Watch]]:
    """Associate with a peer for a block.

    Parameters
    ----------
    peer
        Whom to call.
    contexts
        What to propose, at most ``MOST_CONTEXTS``.
    handlers
        Called for events of the association.
    stored
        SOP classes that the peer may send over this association, as C-GET needs it.
    largest
        Bytes of a message that it may send.

    Returns
    -------
    Iterator[tuple[Association, Watch]]
        The association, and what ends it when the peer is silent for too long.

    Raises
    ------
    NothingAcceptedError
        The peer accepts none of the contexts.
    PeerError
        The peer cannot be reached or refuses.
    """
    addresses = addresses_of(peer.host)
    if not addresses:
        raise PeerError(str(peer), "cannot be reached: no address is known for this host")
    if peer.tls is not None:
        peer.tls.sslsocket_class = BoundedTlsSocket
    entity = AE(peer.own_title)
    # The watch sees to all waits but these; a limit for whole messages would cut off large ones on slow lines.
    entity.connection_timeout = entity.acse_timeout = peer.idle_seconds
    entity.dimse_timeout = entity.network_timeout = None
    with Watch(peer.idle_seconds, peer.total_seconds) as watch:
        line = _Line(watch, peer.idle_seconds, largest)
        association = entity.associate(
            addresses[0],
            peer.port,
            list(contexts),
            peer.title,
            LONGEST_PDU,
            ext_neg=[build_role(kind, scp_role=True) for kind in stored],
            tls_args=(peer.tls, peer.host) if peer.tls else None,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, line.open),
                (evt.EVT_DATA_RECV, line.move),
                (evt.EVT_PDU_SENT, line.move),
                (evt.EVT_PDU_RECV, line.count),
                (evt.EVT_DIMSE_RECV, line.count_anew),
                *handlers,
            ],
        )
        if not association.is_established:
            answer = association.acceptor.primitive
            if association.rejected_contexts and answer and answer.presentation_context_definition_results_list:
                raise NothingAcceptedError(str(peer))
            raise PeerError(str(peer), _why_not(association, watch))
        # A command that cannot be decoded ends the thread that would say that the association has ended.
        watch.wake(lambda: association.dimse.msg_queue.put((None, None)))
        try:
            yield association, watch
            association.release()
        except RuntimeError:
            # This is what pynetdicom raises for a message over an association that has ended.
            if association.is_established:
                raise
            raise PeerError(str(peer), watch.reason or "ended the association") from None
        finally:
            association.abort()


class _Line:
    """The connection of an association: fast, and bounded in all that a peer can send."""

    def __init__(self, watch: Watch, idle_seconds: float, largest: int) -> None:
        self._watch = watch
        self._seconds = 2 * idle_seconds  # so that the watch is first, which has a reason
        self._largest = largest
        self._connection: socket.socket | None = None
        self._received = 0

    def open(self, event: evt.Event) -> None:
        """Take over the connection before anything is read from it."""
        outer = event.assoc.dul.socket
        if outer is None or outer.socket is None:
            return
        if isinstance(outer.socket, ssl.SSLSocket):
            self._connection = outer.socket
            outer.socket.settimeout(self._seconds)
            if isinstance(outer.socket, BoundedTlsSocket):
                outer.socket.frames = Frames(LONGEST_PDU, self._seconds)
        else:
            self._connection = outer.socket = bounded_socket(outer.socket, None, LONGEST_PDU, self._seconds)
        # A message is sent in several pieces: without this, each would wait for the peer to acknowledge the last.
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch.hold(self._connection)

    def move(self, _: evt.Event) -> None:
        """Note that the peer is there."""
        self._watch.touch()
        # Nor may the peer have to wait for ours, 40 ms for every object; the kernel forgets this again and again.
        if self._connection is not None:
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def count(self, event: evt.Event) -> None:
        """End the association if a message does not end."""
        if isinstance(event.pdu, P_DATA_TF):
            self._received += event.pdu.pdu_length
            if self._received > self._largest:
                self._watch.end(f"sent a message of more than {self._largest:,} bytes")

    def count_anew(self, _: evt.Event) -> None:
        """Begin with the next message."""
        self._received = 0


def addresses_of(host: str) -> list[str]:
    """Return the IP addresses of a host, IPv4 first: few archives listen on IPv6; empty if none is known."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(one[4][0]) for one in sorted(found, key=lambda one: one[0] != socket.AF_INET)]


def _why_not(association: Association, watch: Watch) -> str:
    """Say why there is no association."""
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        return f"refused the association: {answer.reason_str} ({answer.source_str})"
    if watch.reason:
        return watch.reason
    if not watch.has_begun:
        return "cannot be reached: check host, port, TLS and firewalls"
    return "ended the connection, or did not answer in time"


def echo(peer: Peer) -> None:
    """Ask whether a peer is there and accepts us (C-ECHO).

    Raises
    ------
    PeerError
        It does not.
    """
    with associated(peer, [build_context(Verification)]) as (association, watch):
        status = association.send_c_echo()
        require_answer(peer, watch, status)
        if status.Status != SUCCESS:
            raise PeerError(str(peer), f"answered C-ECHO with {status_text(status)}")


def require_answer(peer: Peer, watch: Watch, status: Dataset) -> None:
    """Raise if a call returned without an answer.

    Raises
    ------
    PeerError
        The peer was silent for too long, or ended the association.
    """
    if "Status" not in status:
        raise PeerError(str(peer), watch.reason or "ended the association")


def status_text(status: Dataset) -> str:
    """Return the status of an answer and the peer's comment on it, for people."""
    comment = str(status.get("ErrorComment", "") or "")[:_LONGEST_COMMENT]
    return f"0x{status.Status:04X}" + (f" ({visible(comment)})" if comment else "")


def contexts_for(kinds: Iterable[tuple[str, str]]) -> list[PresentationContext]:
    """Return presentation contexts for SOP classes and transfer syntaxes.

    Uncompressed syntaxes share a context, since a peer can convert between them; each other has one of its own, since
    a peer that may choose would choose only one of several.

    Parameters
    ----------
    kinds
        SOP class and transfer syntax UIDs, the most important first.

    Returns
    -------
    list[PresentationContext]
        At most ``MOST_CONTEXTS``: what does not fit is left out.
    """
    found: dict[tuple[str, str], PresentationContext] = {}
    for kind, syntax in kinds:
        plain = syntax in _UNCOMPRESSED
        found.setdefault((kind, "" if plain else syntax), build_context(kind, [*_UNCOMPRESSED] if plain else [syntax]))
    return list(found.values())[:MOST_CONTEXTS]
