"""How results reach a destination: C-STORE, or STOW-RS."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from client.node.config import Destination, Node
from client.node.outbox import Deliver
from client.pacs.address import read_token, tls_context
from client.pacs.peer import Peer, PeerError
from client.pacs.sender import send_files

_LONGEST_SECONDS = 3600.0
_FAILED_SEQUENCE, _FAILURE_REASON = "00081198", "00081197"
_OK, _ACCEPTED = 200, 202
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
        return WebStore(destination.url, tls, token, destination.idle_seconds).deliver
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
    idle_seconds
        How long it may be silent.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None, token: str, idle_seconds: float) -> None:
        self._url = url
        self._tls = tls
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._idle_seconds = idle_seconds

    def deliver(self, paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        """Send files one by one; see ``client.node.outbox.Deliver``.

        Raises
        ------
        PeerError
            It cannot be reached, or refuses whatever is sent.
        """
        # Neither proxies nor passwords of the environment.
        with httpx.Client(trust_env=False, verify=self._tls or True, timeout=self._idle_seconds) as client:
            for path in paths:
                try:
                    answer = self._store(client, path.read_bytes())
                except httpx.HTTPError as error:
                    raise PeerError(self._url, f"cannot be reached: {type(error).__name__}") from None
                code = answer.status_code
                if code in _NOT_NOW or code // 100 not in (2, 4):
                    raise PeerError(self._url, f"answered STOW-RS with HTTP {code}")
                problem = _problem(answer)
                yield path, "" if problem.startswith(_ALREADY_THERE) else problem

    def _store(self, client: httpx.Client, content: bytes) -> httpx.Response:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json", **self._headers}
        body = b"".join((head, content, f"\r\n--{boundary}--\r\n".encode()))
        return client.post(f"{self._url}/studies", content=body, headers=headers)


def _problem(answer: httpx.Response) -> str:
    """Return why the only instance of a request was not stored; empty if it was."""
    if answer.status_code == _OK:
        return ""
    try:
        failed = answer.json()[_FAILED_SEQUENCE]["Value"][0]
        reason = failed[_FAILURE_REASON]["Value"][0]
        return f"status 0x{int(reason):04X}"
    except (ValueError, KeyError, IndexError, TypeError):
        return "" if answer.status_code == _ACCEPTED else f"HTTP {answer.status_code}"
