"""An archive that speaks DICOMweb: QIDO-RS to ask, WADO-RS to fetch."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import ssl
import warnings
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.filewriter import dcmwrite
from requests.adapters import HTTPAdapter

from client.pacs.archive import LONGEST_VALUE, MOST_ANSWERS, Answer, Inbox, Instance
from client.pacs.peer import PeerError
from client.pacs.watch import Watch
from common.errors import FedvoxError
from common.formatting import visible

# It logs addresses with what was asked for, and warns of answers that it reads all the same.
warnings.filterwarnings("ignore", module=r"dicomweb_client\.")
logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._~*?-]+")
"""Characters that would be escaped in a URL, which some services do not undo. They are asked for as any characters."""
_PAGE = 1000
_CHUNK = 2**16
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_AS_STORED = (("application/dicom", "*"),)
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
    url
        Base of its services.
    tls
        For https.
    token
        Bearer token; empty for none.
    idle_seconds, total_seconds
        How long it may be silent, and how long one call may take.
    """

    def __init__(
        self, url: str, tls: ssl.SSLContext | None, token: str, idle_seconds: float, total_seconds: float
    ) -> None:
        self._url = url
        self._idle_seconds, self._total_seconds = idle_seconds, total_seconds
        self._session = _Session()
        # Neither proxies and passwords of the environment, nor another host than the one that was given.
        self._session.trust_env = False
        self._session.max_redirects = 0
        self._session.mount("https://", _Adapter(tls))
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        try:
            self._client = DICOMwebClient(url, self._session, chunk_size=_CHUNK, timeout=idle_seconds)
        except ValueError as error:
            raise PeerError(url, f"is no address: {error}", is_passing=False) from None
        self._client.set_http_retry_params(retry=False)

    def __str__(self) -> str:
        return self._url

    def probe(self) -> None:
        """Ask whether it is there, for one study; see ``Archive``."""
        with self._bounded("QIDO-RS"):
            self._client.search_for_studies(limit=1)

    def ask(self, level: str, keys: Mapping[str, str], fields: Sequence[str]) -> list[Answer]:
        """Ask by QIDO-RS; see ``Archive``."""
        uids = {keyword: value for keyword, value in keys.items() if level != "STUDY" and keyword.endswith("UID")}
        filters = {keyword: self._widened(value) for keyword, value in keys.items() if keyword not in uids}
        found: dict[str, Answer] = {}
        while True:
            with self._bounded("QIDO-RS"):
                page = self._page(level, uids, filters, fields, len(found))
            before = len(found)
            for item in page:
                answer = {keyword: _value(item, keyword) for keyword in fields}
                found[answer[fields[0]]] = answer
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

    def _page(
        self, level: str, uids: Mapping[str, str], filters: Mapping[str, str], fields: Sequence[str], offset: int
    ) -> list[Any]:
        options: dict[str, Any] = {
            "fields": list(fields),
            "search_filters": dict(filters),
            "limit": _PAGE,
            "offset": offset,
        }
        study, series = uids.get("StudyInstanceUID"), uids.get("SeriesInstanceUID")
        if level == "STUDY":
            page = self._client.search_for_studies(**options)
        elif level == "SERIES":
            page = self._client.search_for_series(study, **options)
        else:
            page = self._client.search_for_instances(study, series, **options)
        return page if isinstance(page, list) else []

    def fetch(self, study: str, series: Mapping[str, Sequence[Instance]], inbox: Inbox) -> None:
        """Fetch by WADO-RS; see ``Archive``."""
        with self._bounded("WADO-RS"):
            for uid in series:
                for dataset in self._client.iter_series(study, uid, media_types=_AS_STORED):
                    content = BytesIO()
                    dcmwrite(content, dataset, enforce_file_format=True)
                    inbox.keep(content.getvalue())

    def _broken(self, error: Exception) -> str:
        if isinstance(_innermost(error), TimeoutError):
            return f"was silent for {self._idle_seconds:g} seconds"
        return f"cannot be reached or broke off ({_cause(error)})"

    @contextlib.contextmanager
    def _bounded(self, service: str) -> Iterator[None]:
        """End what takes too long in a block, and say in our words what went wrong."""
        # Silence is seen by the session, which knows of every byte; the watch sees to bytes that come too slowly.
        with Watch(math.inf, self._total_seconds) as watch:

            def hold(response: requests.Response, *_: object, **__: object) -> None:
                watch.hold_any(lambda: _stop(response))

            self._session.hooks["response"] = [hold]
            try:
                yield
                if watch.reason:
                    raise PeerError(str(self), watch.reason)
            except FedvoxError:
                raise
            except requests.HTTPError as error:
                code = 0 if error.response is None else error.response.status_code
                raise PeerError(str(self), f"answered {service} with HTTP {code}", code in _PASSING) from None
            except requests.TooManyRedirects:
                raise PeerError(
                    str(self), "redirects elsewhere: give the address that it redirects to", False
                ) from None
            except requests.exceptions.SSLError as error:
                raise PeerError(str(self), f"has no TLS that is trusted here: {_cause(error)}", False) from None
            except requests.RequestException as error:
                raise PeerError(str(self), watch.reason or self._broken(error)) from None
            except Exception as error:  # an answer from anywhere may break any line of a parser
                problem = watch.reason or f"gave {service} an answer that cannot be read ({type(error).__name__})"
                raise PeerError(str(self), problem) from None


class _Session(requests.Session):
    """Leaves wildcards as they are in URLs, for services that do not undo escapes."""

    def request(self, method: str, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request."""
        return super().request(method, str(url).replace("%2A", "*").replace("%3F", "?"), *args, **kwargs)


class _Adapter(HTTPAdapter):
    """Connects with a TLS context of ours."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls or ssl.create_default_context()
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the connections' pool."""
        super().init_poolmanager(*args, **kwargs, ssl_context=self._tls)

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Leave the context as it is, which checks certificates: requests would trust those of its own bundle, too."""


def _stop(response: requests.Response) -> None:
    """Shut an answer's socket down, from another thread, unless all has been read."""
    with contextlib.suppress(RuntimeError, ValueError):
        response.raw.shutdown()


def _cause(error: BaseException) -> str:
    """Return the innermost error's name: texts of libraries hold whole addresses."""
    inner = _innermost(error)
    return visible(getattr(inner, "strerror", None) or type(inner).__name__)


def _innermost(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _value(item: Any, keyword: str) -> str:
    """Return a value of an answer in JSON as text, shortened; empty for whatever is none."""
    values = item.get(_TAGS[keyword], {}) if isinstance(item, dict) else {}
    values = values.get("Value") if isinstance(values, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first)[:LONGEST_VALUE].strip(" \0") if isinstance(first, str | int | float) else ""
