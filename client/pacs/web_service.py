"""Calls of a DICOMweb service, with a bound on all that it can send and on how long that may take."""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from client.pacs.peer import PeerError
from client.pacs.watch import Watch
from common.formatting import visible


class WebService:
    """A DICOMweb service.

    Parameters
    ----------
    url
        Its base, to which ``/studies`` is added.
    tls
        For https; None for the authorities of the system.
    token
        Bearer token; empty for none.
    idle_seconds, total_seconds
        How long it may be silent, and how long the calls of a block may take.
    """

    def __init__(
        self, url: str, tls: ssl.SSLContext | None, token: str, idle_seconds: float, total_seconds: float
    ) -> None:
        self._url = url
        self._tls = tls or ssl.create_default_context()
        # An answer in a compressed form could be of any size.
        self._headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}
        self._idle_seconds, self._total_seconds = idle_seconds, total_seconds

    def __str__(self) -> str:
        return self._url

    @contextmanager
    def calling(self) -> Iterator[Calls]:
        """Call it for a block.

        Raises
        ------
        PeerError
            It cannot be reached, breaks off, is silent, or takes too long.
        """
        # Silence is seen by httpx, which knows of every byte; the watch sees to bytes that come too slowly.
        with Watch(math.inf, self._total_seconds) as watch:
            try:
                # Neither proxies nor passwords of the environment.
                with httpx.Client(
                    trust_env=False, verify=self._tls, timeout=self._idle_seconds, headers=self._headers
                ) as client:
                    yield Calls(self._url, client, watch)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if watch.reason:
                    raise PeerError(self._url, watch.reason) from None
                raise self._broken(error) from None
            if watch.reason:
                raise PeerError(self._url, watch.reason)

    def _broken(self, error: Exception) -> PeerError:
        """Say what went wrong. Texts of libraries hold whole addresses."""
        if isinstance(error, httpx.InvalidURL):
            return PeerError(self._url, "is no address", is_passing=False)
        if isinstance(error, httpx.TimeoutException):
            return PeerError(self._url, f"was silent for {self._idle_seconds:g} seconds")
        inner: BaseException = error
        while (cause := inner.__cause__ or inner.__context__) is not None:
            inner = cause
            if isinstance(inner, ssl.SSLCertVerificationError):
                problem = f"has a TLS certificate that is not trusted here: {visible(inner.verify_message)}"
                return PeerError(self._url, problem, is_passing=False)
        what = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off"
        return PeerError(self._url, f"{what}: {visible(getattr(inner, 'strerror', None) or type(inner).__name__)}")


class Calls:
    """Calls of a service; made by ``WebService.calling``."""

    def __init__(self, url: str, client: httpx.Client, watch: Watch) -> None:
        self._url = url
        self._client = client
        self._watch = watch

    @contextmanager
    def call(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> Iterator[httpx.Response]:
        """Call it, for a block that reads the answer by ``iter_raw`` or ``read_body``. Redirections are not followed.

        Raises
        ------
        PeerError
            The answer is compressed.
        """
        address, watched = f"{self._url}{path}", {"trace": self._trace}
        with self._client.stream(method, address, content=content, headers=headers, extensions=watched) as response:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.strip().lower() != "identity":
                raise PeerError(self._url, "compresses its answers, although it must not", is_passing=False)
            yield response

    def read_body(self, response: httpx.Response, most_bytes: int) -> bytes:
        """Return all of an answer.

        Raises
        ------
        PeerError
            It has more bytes.
        """
        parts, left = [], most_bytes
        for part in response.iter_raw():
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise PeerError(self._url, f"gave an answer of more than {most_bytes:,} bytes", is_passing=False)
        return b"".join(parts)

    def _trace(self, step: str, details: dict[str, Any]) -> None:
        """Have a connection watched as soon as it is there; httpx calls this at each step."""
        if step == "connection.connect_tcp.complete":
            self._watch.hold(details["return_value"].get_extra_info("socket"))
