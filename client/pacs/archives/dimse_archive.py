"""An archive that speaks DICOM: C-FIND to ask, C-GET or C-MOVE to fetch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import build_context, evt

# Classes of services are made when their module is imported.
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from client.pacs.address import ArchiveAddress
from client.pacs.archives.archive import LONGEST_VALUE, MOST_ANSWERS, Answer, Inbox, Instance
from client.pacs.bounded_socket import server_context
from client.pacs.peer import (
    LARGEST_OBJECT,
    LONGEST_PDU,
    SUCCESS,
    WARNING,
    Peer,
    PeerError,
    addresses_of,
    associated,
    contexts_for,
    echo,
    require_answer,
    status_text,
)
from client.pacs.receiver import (
    MISMATCH,
    OUT_OF_RESOURCES,
    AllowedPeer,
    Arrival,
    NotStoredError,
    Receiver,
    ReceiverSettings,
)
from client.pacs.watch import Watch
from common.errors import ConfigError, OutputError
from common.imaging.io.dicom.slices import RefusedError
from common.imaging.io.dicom.values import text

_SYNTAXES = (
    ExplicitVRLittleEndian,
    *(JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless, RLELossless, JPEGLossless, DeflatedExplicitVRLittleEndian),
    *(ExplicitVRBigEndian, JPEGBaseline8Bit, JPEG2000, JPEGLSNearLossless, JPEGExtended12Bit),
)
"""What objects may be sent in, the likeliest first; whether all of these are read is the reader's to say."""
_USUAL_KINDS = (
    *(CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage),
    *(EnhancedCTImageStorage, EnhancedMRImageStorage, EnhancedPETImageStorage),
    *(SegmentationStorage, RTStructureSetStorage, SecondaryCaptureImageStorage),
)
"""Asked for where an archive does not say what it has."""
_PENDING = (0xFF00, 0xFF01)
_LONGEST_ANSWER = 2**20
"""Bytes of an answer of C-FIND."""
_HOPELESS = frozenset({0x0122, 0x0124, 0xA801, 0xA900})
"""Not supported, not allowed, unknown destination, not understood: it will be so again."""


class DimseArchive:
    """An archive behind DICOM's own protocol.

    Parameters
    ----------
    peer
        Its address.
    store
        Where it sends to by C-MOVE; None for C-GET.
    """

    def __init__(self, peer: Peer, store: ReceiverSettings | None = None) -> None:
        self._peer = peer
        self._store = store

    def __str__(self) -> str:
        return str(self._peer)

    def probe(self) -> None:
        """Ask whether it is there, by C-ECHO; see ``Archive``."""
        echo(self._peer)

    def ask(self, level: str, keys: Mapping[str, str], fields: Sequence[str]) -> list[Answer]:
        """Ask by C-FIND; see ``Archive``."""
        question = _question(level, {**dict.fromkeys(fields, ""), **keys})
        found: list[Answer] = []
        model = StudyRootQueryRetrieveInformationModelFind
        with associated(self._peer, [build_context(model)], largest=_LONGEST_ANSWER) as (association, watch):
            self._require(bool(association.accepted_contexts), "C-FIND")
            for status, answer in association.send_c_find(question, model):
                self._judge(watch, status, "C-FIND")
                if answer is not None:
                    found.append({keyword: _text(answer, keyword) for keyword in fields})
                if len(found) > MOST_ANSWERS:
                    raise PeerError(str(self), f"gives more than {MOST_ANSWERS:,} answers: ask for less", False)
        return found

    def fetch(self, study: str, series: Mapping[str, Sequence[Instance]], inbox: Inbox) -> None:
        """Fetch by C-GET or C-MOVE; see ``Archive``."""
        if self._store is None:
            self._get(study, series, inbox)
        else:
            self._move(self._store, study, series, inbox)

    def _get(self, study: str, series: Mapping[str, Sequence[Instance]], inbox: Inbox) -> None:
        kinds = {one.kind for instances in series.values() for one in instances if one.kind} or {*_USUAL_KINDS}
        model = StudyRootQueryRetrieveInformationModelGet
        pairs = [(kind, syntax) for syntax in _SYNTAXES for kind in sorted(kinds)]
        contexts = [build_context(model), *contexts_for(pairs)[:-1]]
        problems: list[OutputError] = []

        def store(event: evt.Event) -> int:
            try:
                return MISMATCH if inbox.keep([event.encoded_dataset()]) else SUCCESS
            except OutputError as error:
                problems.append(error)
                return OUT_OF_RESOURCES

        with associated(self._peer, contexts, [(evt.EVT_C_STORE, store)], stored=kinds) as (association, watch):
            offered = {context.abstract_syntax for context in association.accepted_contexts}
            self._require(model in offered, "C-GET")
            for uid in series:
                question = _question("SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": uid})
                for status, _answer in association.send_c_get(question, model):
                    if problems:
                        raise problems[0]
                    self._judge(watch, status, "C-GET")

    def _move(
        self, store: ReceiverSettings, study: str, series: Mapping[str, Sequence[Instance]], inbox: Inbox
    ) -> None:
        model = StudyRootQueryRetrieveInformationModelMove
        with associated(self._peer, [build_context(model)]) as (association, watch):
            self._require(bool(association.accepted_contexts), "C-MOVE")
            problems: list[OutputError] = []

            def keep(arrival: Arrival) -> None:
                try:
                    problem = inbox.keep([arrival.content])
                except OutputError as error:
                    problems.append(error)
                    raise
                if problem:
                    raise NotStoredError(MISMATCH, problem)

            with _listening(store, keep, watch.touch):
                for uid in series:
                    question = _question("SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": uid})
                    for status, _answer in association.send_c_move(question, store.ae_title, model):
                        if problems:
                            raise problems[0]
                        self._judge(watch, status, "C-MOVE")

    def _require(self, offers: bool, service: str) -> None:
        if not offers:
            raise PeerError(str(self), f"does not offer {service} to {self._peer.own_title}", is_passing=False)

    def _judge(self, watch: Watch, status: Dataset, service: str) -> None:
        """Raise for an answer that says that something failed, and for none."""
        require_answer(self._peer, watch, status)
        code = status.Status
        if code != SUCCESS and code not in _PENDING and code >> 12 != WARNING:
            raise PeerError(str(self), f"answered {service} with {status_text(status)}", code not in _HOPELESS)


@contextmanager
def _listening(store: ReceiverSettings, keep: Callable[[Arrival], None], heard: Callable[[], None]) -> Iterator[None]:
    try:
        receiver = Receiver(store, keep, heard)
    except OSError as error:
        where = f"store: {store.address}, port {store.port}"
        raise ConfigError(f"{where}: cannot listen there: {error.strerror or error}") from None
    with receiver:
        yield


def _question(level: str, keys: Mapping[str, str]) -> Dataset:
    question = Dataset()
    for keyword, value in {"QueryRetrieveLevel": level, **keys}.items():
        setattr(question, keyword, UID(value) if keyword.endswith("UID") else value or None)
    return question


def _text(answer: Dataset, keyword: str) -> str:
    try:
        return text(answer, keyword)[:LONGEST_VALUE]
    except RefusedError:
        return ""


def receiver_settings(address: ArchiveAddress, folder: Path) -> ReceiverSettings | None:
    """Return the settings of the store for C-MOVE; None for C-GET.

    Parameters
    ----------
    address
        The archive.
    folder
        Where files that it names lie.

    Raises
    ------
    ConfigError
        The archive's host has no address, or a file of TLS cannot be used.
    """
    store, tls = address.store, address.tls
    if store is None:
        return None
    networks = store.sender_networks or tuple(map(ip_network, addresses_of(address.host or "")))
    if not networks:
        raise ConfigError(f"host {address.host}: no address is known for it; give store.sender_networks")
    titles = store.sender_titles or (address.ae_title or "",)
    context = None
    if tls is not None and tls.ca and tls.certificate and tls.key:
        context = server_context(folder / tls.certificate, folder / tls.key, folder / tls.ca)
    return ReceiverSettings(
        address.own_ae_title,
        str(store.address),
        store.port,
        tuple(AllowedPeer(title, networks) for title in titles),
        context,
        longest_pdu=LONGEST_PDU,
        largest_instance=LARGEST_OBJECT,
        timeout_seconds=address.idle_seconds,
    )
