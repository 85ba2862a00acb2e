"""The gateway's application: authenticates, routes and answers requests (RSGI, Granian's interface).

Requests are authenticated before they are routed. Paths must match exactly; nothing is normalised.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import OutputError, ProtocolError
from common.identity import (
    BODY_HEADER,
    PROBE_PATH,
    SIGNATURE_HEADER,
    SIGNED_HEADERS,
    SITE_HEADER,
    TIME_HEADER,
    Claim,
)
from common.protocol.codec import unpack_heartbeat
from server.flower import NODE_KEY_HEADER
from server.gateway.answers import Answer, Exchange, FileRange
from server.gateway.connections import Connections
from server.gateway.downloads import Downloads
from server.gateway.fleet.relay import Fleet
from server.gateway.fleet.rules import METHODS
from server.gateway.identity import CLIENT_NAME_HEADER, Signatures, Site, Sites, UntimelyError
from server.gateway.quotas import Limits, OpenRequest, Quotas
from server.gateway.refusals import NOBODY, Refusals, RefusedError
from server.gateway.uploads import Uploads
from server.run_store.gateway_folder import REFUSED_FILE, GatewayFolder

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from granian.rsgi import Scope

THREADS = 8
"""Worker threads for hashing and disk access."""
LOOK_SECONDS = 0.5
"""Interval between checks for requests and connections to end."""
SAVE_SECONDS = 1.0
_MODEL = re.compile(r"/models/([0-9a-f]{64})")
_UPDATE = re.compile(r"/updates/([0-9a-f]{32})/([0-9a-f]{64})")
_FLEET = re.compile(rf"/v1/fleet/({'|'.join(sorted(METHODS))})")
_HEARTBEAT = "/heartbeat"
_UNREPEATABLE_HEADERS = frozenset(
    {SITE_HEADER, TIME_HEADER, BODY_HEADER, SIGNATURE_HEADER, CLIENT_NAME_HEADER, NODE_KEY_HEADER, "prefer"}
) | frozenset(SIGNED_HEADERS)
"""Headers that must not be repeated: two readers could pick different values."""
_CLOSING_STATUSES = frozenset({400, 401, 408, 411})
log = logging.getLogger("fedvox.gateway")


@dataclass(frozen=True)
class _Received:
    """An authenticated request."""

    open: OpenRequest
    claim: Claim
    method: str
    path: str
    headers: Mapping[str, str]
    exchange: Exchange

    @property
    def site(self) -> Site:
        return self.open.site


class Gateway:
    """The gateway's RSGI application.

    Parameters
    ----------
    kit
        The server's kit.
    run
        The run folder.
    port
        The port it listens on. None behind a proxy that terminates TLS: connections are then the proxy's, and each
        request carries the name in the client certificate.
    limits
        The limits for each site.
    """

    def __init__(self, kit: Path, run: Path, port: int | None, limits: Limits) -> None:
        self._folder = GatewayFolder(run)
        self._limits = limits
        self._sites = Sites(kit)
        self._signatures = Signatures(self._sites, limits.signed_texts, are_names_given=port is None)
        self._connections = None if port is None else Connections(port, limits)
        self._quotas = Quotas(limits)
        self._refusals = Refusals(self._folder.path / REFUSED_FILE)
        self._threads = ThreadPoolExecutor(THREADS, "disk")
        self._downloads = Downloads(self._folder, limits.transfer_bytes)
        self._uploads = Uploads(self._folder, self._quotas, self._threads)
        self._fleet = Fleet(self._folder, limits.wait_seconds)
        self._background: set[asyncio.Task[None]] = set()

    def __rsgi_init__(self, loop: AbstractEventLoop) -> None:
        """Start the background tasks; called by Granian."""
        self._fleet.open()
        self._background.add(loop.create_task(self._run_housekeeping()))

    async def stop(self) -> None:
        """Answer all long polls, then end the remaining requests."""
        self._fleet.stop_waiting()
        await asyncio.sleep(LOOK_SECONDS)
        for request in self._quotas.all_open():
            request.end(RefusedError(503, "stopping"))

    async def close(self) -> None:
        """Stop the background tasks and save the refusal counts, after the last request."""
        for task in self._background:
            task.cancel()
        await self._fleet.close()
        self._refusals.save()
        self._uploads.close_idle(0)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        """Handle one request; called by Granian."""
        site, method, path = NOBODY, scope.method, scope.path
        try:
            headers = _checked_headers(scope)
            proven, claim = self._signatures.prove(method, path, headers)
            site = proven.name
            if self._connections is not None:
                self._connections.note_request(scope.client, site)
            answer = await self._handle(proven, claim, method, path, headers, exchange)
        except RefusedError as refusal:
            site = refusal.site if isinstance(refusal, UntimelyError) else site
            answer = self._refused(site, refusal, method, path)
        except (OSError, OutputError) as error:
            log.error("%s: %s: %s", site, type(error).__name__, error)
            answer = Answer(503, {}, b"disk")
        except Exception:
            log.exception("%s: an internal error", site)
            answer = Answer(500)
        if self._connections is not None and isinstance(answer.content, FileRange):
            self._connections.note_download(scope.client, answer.content.end - answer.content.start)
        with contextlib.suppress(RuntimeError):  # the client has hung up
            answer.send(exchange)

    def _refused(self, site: str, refusal: RefusedError, method: str, path: str) -> Answer:
        # A wrong offset is normal when an upload resumes, and so is the question of a site that is about to join.
        if refusal.status != 409 and (refusal.status, path) != (404, PROBE_PATH):
            self._refusals.count(site, refusal, method, path)
        headers = {"content-type": "text/plain"} | refusal.headers
        if refusal.status in _CLOSING_STATUSES:
            headers["connection"] = "close"
        return Answer(refusal.status, headers, b"" if method == "HEAD" else refusal.reason.encode())

    async def _handle(
        self, site: Site, claim: Claim, method: str, path: str, headers: Mapping[str, str], exchange: Exchange
    ) -> Answer:
        request: OpenRequest | None = None
        try:
            async with asyncio.timeout(None) as timeout:
                request = OpenRequest(site, timeout, self._limits)
                with self._quotas.request(request):
                    return await self._route(_Received(request, claim, method, path, headers, exchange))
        except TimeoutError:
            if request is not None and request.refusal is not None:
                raise request.refusal from None
            raise

    async def _route(self, received: _Received) -> Answer:
        path = received.path
        if found := _MODEL.fullmatch(path):
            _check_method(received.method, "GET", "HEAD")
            return await self._model(received, found[1])
        if found := _UPDATE.fullmatch(path):
            _check_method(received.method, "HEAD", "PATCH")
            return await self._update(received, found[1], found[2])
        if found := _FLEET.fullmatch(path):
            _check_method(received.method, "POST")
            body = await self._body(received, self._limits.fleet_bytes)
            gone = received.exchange.client_disconnect
            return await self._fleet.relay(received.site, found[1], received.headers, body, gone)
        if path == _HEARTBEAT:
            _check_method(received.method, "POST")
            return await self._heartbeat(received)
        raise RefusedError(404, "path")

    async def _model(self, received: _Received, digest: str) -> Answer:
        _check_no_body(received.headers)
        site, wanted = received.site.name, received.headers.get("range")

        def find() -> Answer:
            if received.method == "HEAD":
                return self._downloads.head(site, digest)
            return self._downloads.get(site, digest, wanted)

        return await asyncio.get_running_loop().run_in_executor(self._threads, find)

    async def _update(self, received: _Received, task: str, digest: str) -> Answer:
        if received.method == "HEAD":
            _check_no_body(received.headers)
            return await self._uploads.head(received.open, task, digest)
        if received.claim.body != digest:
            raise RefusedError(401, "signature")
        return await self._uploads.patch(received.open, task, digest, received.headers, received.exchange)

    async def _heartbeat(self, received: _Received) -> Answer:
        body = await self._body(received, self._limits.heartbeat_bytes)
        try:
            beat = unpack_heartbeat(body)
        except ProtocolError:
            raise RefusedError(400, "malformed") from None
        loop, site = asyncio.get_running_loop(), received.site.name
        await loop.run_in_executor(self._threads, self._folder.note_heartbeat, site, beat)
        return Answer(204)

    async def _body(self, received: _Received, most: int) -> bytes:
        """Read a small body and check it against the signed digest."""
        length = received.headers.get("content-length", "")
        if not length.isdecimal():
            raise RefusedError(411, "malformed")
        if int(length) > most:
            raise RefusedError(413, "too-large")
        content = bytearray()
        with received.open.receiving() as note:
            async for portion in received.exchange:
                content += portion
                note(len(portion))
        if len(content) != int(length):
            raise RefusedError(400, "incomplete")
        if hashlib.sha256(content).hexdigest() != received.claim.body:
            raise RefusedError(401, "signature")
        return bytes(content)

    async def _run_housekeeping(self) -> None:
        saved = 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self._end_revoked_and_slow()
                if time.monotonic() - saved >= SAVE_SECONDS:
                    saved = time.monotonic()
                    await asyncio.get_running_loop().run_in_executor(self._threads, self._refusals.save)
            except Exception:
                # Revocation must keep working whatever the error.
                log.exception("an internal error")

    def _end_revoked_and_slow(self) -> None:
        """End the requests and connections of revoked sites, and those that are too slow."""
        for request in self._quotas.all_open():
            if not self._sites.is_admitted(request.site):
                request.end(RefusedError(401, "unknown-site"))
            elif request.is_too_slow:
                request.end(RefusedError(408, "slow"))
        self._uploads.close_idle()
        if self._connections is not None:
            self._connections.shut(lambda site: self._sites.find(site) is not None)


def _checked_headers(scope: Scope) -> dict[str, str]:
    """Return the request's headers by lower-case name.

    Raises
    ------
    RefusedError
        The request is not plain HTTP/1.1, or is ambiguous.
    """
    if scope.proto != "http" or scope.authority is not None or scope.query_string or not scope.path.isascii():
        raise RefusedError(400, "malformed")
    headers: dict[str, str] = {}
    for name, value in scope.headers.items():
        if (name in headers and name in _UNREPEATABLE_HEADERS) or not value.isascii():
            raise RefusedError(400, "malformed")
        headers[name] = value
    if "transfer-encoding" in headers:
        # All our clients send a length. Granian silently accepts a length together with an encoding.
        raise RefusedError(411, "malformed")
    return headers


def _check_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise RefusedError(405, "method", {"allow": ", ".join(allowed)})


def _check_no_body(headers: Mapping[str, str]) -> None:
    if headers.get("content-length", "0") != "0":
        raise RefusedError(400, "malformed")
