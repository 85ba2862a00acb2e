"""An archive that speaks DICOMweb: QIDO-RS to ask, WADO-RS to fetch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import httpx

from client.pacs.archives.archive import LONGEST_VALUE, MOST_ANSWERS, Answer, Inbox, Instance
from client.pacs.archives.multipart import MultipartError, boundary_of, read_parts
from client.pacs.peer import LARGEST_OBJECT, PeerError
from client.pacs.web_service import Calls, WebService

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._~*?-]+")
"""Characters that would be escaped in a URL, which some services do not undo. They are asked for as any characters."""
_PAGE = 1000
_LONGEST_PAGE = 2**25
"""Bytes; 32,000 for an answer."""
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_AS_JSON = {"Accept": "application/dicom+json"}
_AS_STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
_TAGS = {
    "StudyInstanceUID": "0020000D",
    "AccessionNumber": "00080050",
    "StudyDate": "00080020",
    "StudyDescription": "00081030",
    "SeriesInstanceUID": "0020000E",
    "Modality": "00080060",
    "SeriesDescription": "0008103E",
    "BodyPartExamined": "00180015",
    "SOPInstanceUID": "00080018",
    "SOPClassUID": "00080016",
    "Rows": "00280010",
    "Columns": "00280011",
    "NumberOfFrames": "00280008",
}


class WebArchive:
    """An archive behind DICOMweb.

    Parameters
    ----------
    service
        How it is called.
    """

    def __init__(self, service: WebService) -> None:
        self._service = service

    def __str__(self) -> str:
        return str(self._service)

    def probe(self) -> None:
        """Ask whether it is there, for one study; see ``Archive``."""
        with self._service.calling() as calls:
            self._found(calls, "/studies", {"limit": "1"})

    def ask(self, level: str, keys: Mapping[str, str], fields: Sequence[str]) -> list[Answer]:
        """Ask by QIDO-RS; see ``Archive``."""
        rest = dict(keys)
        path = "/studies"
        if level != "STUDY":
            path += f"/{rest.pop('StudyInstanceUID')}/series"
        if level == "IMAGE":
            path += f"/{rest.pop('SeriesInstanceUID')}/instances"
        filters = {keyword: self._widened(value) for keyword, value in rest.items()}
        found: dict[str, Answer] = {}
        with self._service.calling() as calls:
            while True:
                range_ = {"limit": str(_PAGE), "offset": str(len(found))}
                page = self._found(calls, path, {**filters, **range_}, fields)
                before = len(found)
                found |= {answer[fields[0]]: answer for answer in page}
                if len(found) > MOST_ANSWERS:
                    raise PeerError(str(self), f"gives more than {MOST_ANSWERS:,} answers: ask for less", False)
                # Also of an archive that always gives the first page.
                if len(page) < _PAGE or len(found) == before:
                    return list(found.values())

    def _widened(self, value: str) -> str:
        widened = _NOT_PLAIN.sub("*", value)
        if not widened.strip("*?"):
            raise PeerError(str(self), "cannot be asked for what has neither letters nor digits", is_passing=False)
        return widened

    def _found(self, calls: Calls, path: str, query: Mapping[str, str], fields: Sequence[str] = ()) -> Sequence[Answer]:
        pairs = [*query.items(), *(("includefield", keyword) for keyword in fields)]
        address = f"{path}?{'&'.join(f'{name}={value}' for name, value in pairs)}"
        with calls.call("GET", address, _AS_JSON) as response:
            self._require_success(response, "QIDO-RS")
            body = calls.read_body(response, _LONGEST_PAGE)
        try:
            items = json.loads(body) if body else []
            items = items if isinstance(items, list) else [items]
            return [{keyword: _value(item, keyword) for keyword in fields} for item in items]
        except (ValueError, RecursionError):
            raise PeerError(str(self), "gave QIDO-RS an answer that cannot be read") from None

    def fetch(self, study: str, series: Mapping[str, Sequence[Instance]], inbox: Inbox) -> None:
        """Fetch by WADO-RS; see ``Archive``."""
        with self._service.calling() as calls:
            for uid in series:
                with calls.call("GET", f"/studies/{study}/series/{uid}", _AS_STORED) as response:
                    self._require_success(response, "WADO-RS")
                    self._receive(response, inbox)

    def _receive(self, response: httpx.Response, inbox: Inbox) -> None:
        try:
            boundary = boundary_of(response.headers.get("Content-Type", ""))
            for part in read_parts(response.iter_raw(), boundary, LARGEST_OBJECT):
                inbox.keep(part)
        except MultipartError as error:
            raise PeerError(str(self), f"gave WADO-RS an answer that {error}") from None

    def _require_success(self, response: httpx.Response, service: str) -> None:
        code = response.status_code
        if response.is_redirect:
            raise PeerError(str(self), "redirects elsewhere: give the address that it redirects to", False)
        if code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NO_CONTENT):
            raise PeerError(str(self), f"answered {service} with HTTP {code}", code in _PASSING)


def _value(item: Any, keyword: str) -> str:
    """Return a value of an answer in JSON as text, shortened; empty for whatever is none."""
    values = item.get(_TAGS[keyword], {}) if isinstance(item, dict) else {}
    values = values.get("Value") if isinstance(values, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first)[:LONGEST_VALUE].strip(" \0") if isinstance(first, str | int | float) else ""
