"""How results reach a destination: C-STORE, or STOW-RS."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pydicom

from client.node.config import Destination, Node
from client.node.outbox import Deliver
from client.pacs.address import credentials
from client.pacs.peer import Peer, PeerError
from client.pacs.sender import send_files
from client.pacs.web_service import WebService
from common.errors import DataError
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

    It reads the files for TLS and that of the token each time anew; what is wrong with them then is a problem of the
    destination.

    Raises
    ------
    ConfigError
        One of these files cannot be used now.
    """
    _connected(node, destination)
    return lambda paths: _connected(node, destination)(paths)


def _connected(node: Node, destination: Destination) -> Deliver:
    tls, token = credentials(destination, node.folder)
    if destination.url is not None:
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
        self._service = WebService(url, tls, token, idle_seconds, total_seconds)

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
                raise PeerError(str(self._service), f"answered STOW-RS with HTTP {code}")
            problem = _problem(code, answer, uid)
            yield path, "" if problem.startswith(_ALREADY_THERE) else problem

    def _store(self, content: bytes) -> tuple[int, bytes]:
        """Send the content of a file; return the status and the body of the answer."""
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        body = b"".join((head, content, f"\r\n--{boundary}--\r\n".encode()))
        with self._service.calling() as calls, calls.call("POST", "/studies", headers, body) as response:
            return response.status_code, calls.read_body(response, _LONGEST_ANSWER)


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
