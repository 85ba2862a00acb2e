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
from pynetdicom.presentation import PresentationContext

# The class for Verification is made when its module is imported.
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

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
_LONGEST_PDU = 2**17
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

    Returns
    -------
    Iterator[tuple[Association, Watch]]
        The association, and what ends it when the peer is silent for too long.

    Raises
    ------
    PeerError
        The peer cannot be reached or refuses.
    """
    entity = AE(peer.own_title)
    # The watch sees to all waits but these; a limit for whole messages would cut off large ones on slow lines.
    entity.connection_timeout = entity.acse_timeout = peer.idle_seconds
    entity.dimse_timeout = entity.network_timeout = None
    with Watch(peer.idle_seconds, peer.total_seconds) as watch:
        connections: list[socket.socket] = []

        def hold(event: evt.Event) -> None:
            outer = event.assoc.dul.socket
            connection = None if outer is None else outer.socket
            if connection is None:
                return
            connection.settimeout(peer.idle_seconds)
            # A message is sent in several pieces: without this, each would wait for the peer to acknowledge the last.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watch.hold(connection)
            connections.append(connection)

        def moved(_: evt.Event) -> None:
            watch.touch()
            # Nor may the peer have to wait for ours, 40 ms for every object; the kernel forgets this again and again.
            for connection in connections:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

        association = entity.associate(
            _address(peer),
            peer.port,
            list(contexts),
            peer.title,
            _LONGEST_PDU,
            ext_neg=[build_role(kind, scp_role=True) for kind in stored],
            tls_args=(peer.tls, peer.host) if peer.tls else None,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, hold),
                (evt.EVT_DATA_RECV, moved),
                (evt.EVT_PDU_SENT, moved),
                *handlers,
            ],
        )
        if not association.is_established:
            raise PeerError(str(peer), _why_not(association, watch))
        try:
            yield association, watch
            association.release()
        finally:
            association.abort()


def _address(peer: Peer) -> str:
    try:
        found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise PeerError(str(peer), "cannot be reached: no address is known for this host") from None
    # Few archives listen on IPv6, and hosts in a hospital's names may have both.
    ipv4 = [one for one in found if one[0] == socket.AF_INET]
    return str((ipv4 or found)[0][4][0])


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
        if not association.accepted_contexts:
            raise PeerError(str(peer), "does not support C-ECHO", is_passing=False)
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
