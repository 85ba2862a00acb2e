"""An archive that answers as a test wants it to, over the real protocol."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

Answers = Iterator[tuple[int, Dataset | None]]


@dataclass
class OddArchive:
    """What it holds, and how it behaves.

    Attributes
    ----------
    slices
        Instances that C-FIND knows.
    sent
        What C-GET sends, whatever it is asked for; the same by default.
    change
        Applied to each answer of C-FIND.
    get_status
        Instead of what C-GET would send, if not 0.
    ignores_keys
        Whether C-FIND returns everything at every question.
    aborts_get
        Whether C-GET ends the association instead of answering.
    hidden_level
        Level at which C-FIND finds nothing.
    tls
        For DICOM TLS.
    asked
        Every question so far.
    """

    slices: Sequence[Dataset]
    sent: Sequence[Dataset] | None = None
    change: Callable[[Dataset], None] = lambda answer: None
    get_status: int = 0
    ignores_keys: bool = False
    aborts_get: bool = False
    hidden_level: str = ""
    tls: ssl.SSLContext | None = None
    port: int = 0
    asked: list[Dataset] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[OddArchive]:
        entity = AE("ODD")
        for model in (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet):
            entity.add_supported_context(model)
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            assert context.abstract_syntax is not None
            entity.add_supported_context(context.abstract_syntax, scu_role=True, scp_role=True)
        handlers: list[Any] = [(evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get)]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=self.tls)
        assert server is not None and server.socket is not None
        self.port = server.socket.getsockname()[1]
        try:
            yield self
        finally:
            server.shutdown()

    def _find(self, event: evt.Event) -> Answers:
        question = event.identifier
        self.asked.append(question)
        key = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        seen = set()
        if question.QueryRetrieveLevel == self.hidden_level:
            return
        for one in self.slices:
            uid = one[key[question.QueryRetrieveLevel]].value
            if uid in seen or not (self.ignores_keys or _matches(one, question)):
                continue
            seen.add(uid)
            answer = Dataset()
            for element in question:
                if element.keyword != "QueryRetrieveLevel":
                    setattr(answer, element.keyword, one.get(element.keyword))
            self.change(answer)
            yield 0xFF00, answer

    def _get(self, event: evt.Event) -> Iterator[object]:
        if self.aborts_get:
            event.assoc.abort()
            return
        if self.get_status:
            yield 1
            yield self.get_status, None
            return
        sent = self.sent or [one for one in self.slices if _matches(one, event.identifier)]
        yield len(sent)
        for one in sent:
            yield 0xFF00, one


def _matches(one: Dataset, question: Dataset) -> bool:
    for element in question:
        if element.keyword == "QueryRetrieveLevel" or element.value in (None, ""):
            continue
        if str(one.get(element.keyword, "")) != str(element.value):
            return False
    return True
