"""How results reach a destination: C-STORE, or STOW-RS."""

from __future__ import annotations

import json
import math
import secrets
import ssl
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pydicom

from client.node.config import Destination, Node
from client.node.outbox import Deliver
from client.pacs.address import read_token, tls_context
from client.pacs.peer import Peer, PeerError
from client.pacs.sender import send_files
from client.pacs.watch import Watch
from common.errors import DataError
from common.formatting import visible
from common.imaging.io.dicom.header import refused_as_damaged

_LONGEST_SECONDS = 3600.0
_LONGEST_ANSWER = 10**6
"""Bytes."""
_FAILED_SEQUENCE, _FAILURE_REASON = "00081198", "00081197"
_STORED_SEQUENCE, _INSTANCE_UID = "00081199", "00081155"
_NOT_NOW = frozenset({401, 403, 404, 407, 408, 425, 429})
"""Answers of HTTP that say nothing about an instance; those below 200, from 300 and from 500 on do not, either."""
_ALREADY_THERE = "status 0x0111"
"""Of an instance with this UID, which is the same result."""


def delivery(node: Node, destination: Destination) -> Deliver:
    """Return the function that sends files to a destination.

    Raises
    ------
    ConfigError
        A file for TLS, or that of the token, cannot be used.
    """
    tls = tls_context(destination.tls, node.folder) if destination.tls else None
    if destination.url is not None:
        token = read_token(node.folder / destination.token_file) if destination.token_file else ""
        return WebStore(destination.url, tls, token, destination.idle_seconds, _LONGEST_SECONDS).deliver
    peer = Peer(
        destination.ae_title or "",
        destination.host or "",
        destination.port or 0,
        destination.own_ae_title if "own_ae_title" in destination.model_fields_set else node.config.ae_title,
        tls,
        destination.idle_seconds,
        _LONGEST_SECONDS,
    )

    def deliver(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        for path, problem in send_files(peer, paths):
            yield path, "" if problem.startswith(_ALREADY_THERE) else problem

    return deliver


class WebStore:
    """A destination that speaks STOW-RS.

    Parameters
    ----------
    url
        Base of its services, to which ``/studies`` is added.
    tls
        For https; None for the authorities of the system.
    token
        Bearer token; empty for none.
    idle_seconds, total_seconds
        How long it may be silent, and how long sending a file may take.
    """

    def __init__(
        self, url: str, tls: ssl.SSLContext | None, token: str, idle_seconds: float, total_seconds: float
    ) -> None:
        self._url = url
        self._tls = tls or ssl.create_default_context()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._idle_seconds, self._total_seconds = idle_seconds, total_seconds

    def deliver(self, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        """Send files one by one; see ``client.node.outbox.Deliver``.

        Raises
        ------
        PeerError
            It cannot be reached, refuses whatever is sent, or gives an answer without end.
        """
        for path in paths:
            try:
                with refused_as_damaged(path):
                    uid = str(pydicom.filereader.read_file_meta_info(path).MediaStorageSOPInstanceUID)
                    content = path.read_bytes()
            except DataError as error:
                yield path, error.problem
                continue
            code, answer = self._store(content)
            if code in _NOT_NOW or code // 100 not in (2, 4):
                raise PeerError(self._url, f"answered STOW-RS with HTTP {code}")
            problem = _problem(code, answer, uid)
            yield path, "" if problem.startswith(_ALREADY_THERE) else problem

    def _store(self, content: bytes) -> tuple[int, bytes]:
        """Send the content of a file; return the status and the body of the answer."""
        with Watch(math.inf, self._total_seconds) as watch:
            try:
                # Neither proxies nor passwords of the environment.
                with httpx.Client(trust_env=False, verify=self._tls, timeout=self._idle_seconds) as client:
                    code, answer = self._post(client, content, watch)
            except httpx.HTTPError as error:
                raise PeerError(self._url, watch.reason or _why_not(error)) from None
            if watch.reason:
                raise PeerError(self._url, watch.reason)
            return code, answer

    def _post(self, client: httpx.Client, content: bytes, watch: Watch) -> tuple[int, bytes]:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
            "Accept-Encoding": "identity",
            **self._headers,
        }
        body = b"".join((head, content, f"\r\n--{boundary}--\r\n".encode()))
        address, watched = f"{self._url}/studies", {"trace": _holding(watch)}
        with client.stream("POST", address, content=body, headers=headers, extensions=watched) as response:
            answer = b""
            for part in response.iter_raw():
                answer += part
                if len(answer) > _LONGEST_ANSWER:
                    raise PeerError(self._url, f"answered STOW-RS with more than {_LONGEST_ANSWER:,} bytes")
            return response.status_code, answer


def _holding(watch: Watch) -> Callable[[str, dict[str, Any]], None]:
    """Return what httpx calls at each step: it has the watch hold connections from their beginning."""

    def trace(step: str, details: dict[str, Any]) -> None:
        if step in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            watch.hold(details["return_value"].get_extra_info("socket"))

    return trace


def _why_not(error: BaseException) -> str:
    """Say why there was no answer. Texts of libraries hold whole addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a TLS certificate that is not trusted here: {visible(cause.verify_message)}"
        cause = cause.__cause__ or cause.__context__
    return f"cannot be reached: {type(error).__name__}"


def _problem(code: int, answer: bytes, uid: str) -> str:
    """Return why the only instance of a request was not stored; empty only if the answer says that it was."""
    try:
        found = json.loads(answer)
        if failed := _items(found, _FAILED_SEQUENCE):
            return f"status 0x{int(failed[0][_FAILURE_REASON]['Value'][0]):04X}"
        stored = [item[_INSTANCE_UID]["Value"][0] for item in _items(found, _STORED_SEQUENCE)]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return f"HTTP {code}, with an answer that cannot be read"
    if code < HTTPStatus.BAD_REQUEST and uid in stored:
        return ""
    return f"HTTP {code}, with an answer that does not name the instance"


def _items(answer: Any, sequence: str) -> list[Any]:
    return list(answer.get(sequence, {}).get("Value", []))
