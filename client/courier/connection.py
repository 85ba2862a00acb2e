"""HTTPS to the gateway: mutual TLS, every request signed with the site's key."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from client.courier.diagnosis import explain
from client.courier.errors import LineError, RefusedError
from client.courier.proxy import Address, open_socket
from client.courier.transfers.files import BUFFER_BYTES
from common.certificates import AUTHORITY_FILE, SITE_CERTIFICATE_FILE, SITE_KEY_FILE
from common.errors import ConfigError
from common.formatting import visible
from common.identity import sign

SILENCE_SECONDS = 60.0
"""Timeout of a connection on which no byte can be read or written."""
LARGEST_WORD_BYTES = 200
MOST_IDLE = 4
"""Maximum number of idle connections kept for reuse."""


@dataclass(frozen=True)
class Access:
    """Credentials and address with which a site talks to the gateway.

    Attributes
    ----------
    site
        Name of the site.
    authority
        Certificate file of the authority that must have signed the server's certificate.
    on_contact
        Called on every response except 401 and 5xx.
    """

    site: str
    key: ec.EllipticCurvePrivateKey
    context: ssl.SSLContext
    address: Address
    authority: Path
    on_contact: Callable[[], None]
    _idle: list[Connection] = field(default_factory=list, init=False, repr=False, compare=False)

    def headers(self, method: str, path: str, body: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that sign a request; ``body`` is the SHA-256 of its content."""
        return sign(self.key, self.site, method, path, body, headers)

    def note(self, status: int) -> None:
        """Report a response as contact, unless it is 401 or 5xx."""
        if status < 500 and status != 401:
            self.on_contact()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn network errors into ``LineError``. Wrap network calls only."""
        try:
            yield
        except (OSError, http.client.HTTPException, httpx.HTTPError) as error:
            raise LineError(explain(error, self.address, self.authority)) from error

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection for one thread, reusing an idle one if possible: each new one costs a TLS handshake."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = Connection(self)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if connection.is_idle and len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()


def client_context(kit: Path) -> ssl.SSLContext:
    """Return a TLS context that trusts only the federation's authority and presents the site's certificate.

    Raises
    ------
    ConfigError
        If the files do not belong together.
    """
    try:
        context = ssl.create_default_context(cafile=str(kit / AUTHORITY_FILE))
        context.load_cert_chain(kit / SITE_CERTIFICATE_FILE, kit / SITE_KEY_FILE)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{kit}: {AUTHORITY_FILE}, {SITE_CERTIFICATE_FILE} and {SITE_KEY_FILE} cannot be used together "
            f"({error.strerror if isinstance(error, OSError) else error}); ask the coordinator for a new kit"
        ) from None
    return context


class Connection:
    """Sends requests one after another, and reconnects when the connection breaks. Not thread-safe."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._http = _Https(access)
        self._is_fresh = True
        self._response: http.client.HTTPResponse | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the connection is open and the last response was read to its end."""
        return not self._is_fresh and (self._response is None or self._response.isclosed())

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        self._http.close()
        self._is_fresh, self._response = True, None

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> http.client.HTTPResponse:
        """Send a small request and return the response, whose body is yet to be read.

        Parameters
        ----------
        headers
            Names in lower case.

        Raises
        ------
        LineError
            If no response arrives.
        """
        with self._access.translated():
            if not self._is_fresh:
                # The server may have closed the idle connection before it saw the request.
                with contextlib.suppress(http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError):
                    return self._exchange(method, path, headers or {}, body)
                self.close()
            return self._exchange(method, path, headers or {}, body)

    def begin(self, method: str, path: str, headers: Mapping[str, str], length: int, digest: str) -> None:
        """Send the head of a request with a large body; ``send`` and ``answer`` follow.

        Parameters
        ----------
        length
            Size of the body in bytes.
        digest
            SHA-256 that the signature covers in place of the body.

        Raises
        ------
        LineError
            If the connection breaks; ``close`` it.
        """
        with self._access.translated():
            self._put_head(method, path, headers, length, digest)

    def send(self, part: memoryview) -> None:
        """Send a part of the body.

        Raises
        ------
        LineError
            If the connection breaks; the server may have answered nonetheless.
        """
        with self._access.translated():
            self._http.send(part)

    def answer(self) -> http.client.HTTPResponse:
        """Return the response to a request made with ``begin`` and ``send``.

        Raises
        ------
        LineError
            If none arrives.
        """
        with self._access.translated():
            return self._receive_response()

    def check(self, response: http.client.HTTPResponse, what: str, *expected: int) -> None:
        """Check that a response has one of the expected statuses; if not, discard its body and raise.

        Raises
        ------
        RefusedError
            If the status is 400 to 499.
        LineError
            If it is any other unexpected status.
        """
        if response.status in expected:
            return
        try:
            word = one_line(response.read(LARGEST_WORD_BYTES))
        except (OSError, http.client.HTTPException):
            word = ""
        if not response.isclosed():  # the next request must not read the rest of this body
            self.close()
        if 400 <= response.status < 500:
            raise RefusedError(what, response.status, word)
        raise LineError(f"{what}: the server answers {response.status}{f' ({word})' if word else ''}")

    def _exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> http.client.HTTPResponse:
        try:
            self._put_head(method, path, headers, len(body), hashlib.sha256(body).hexdigest())
            if body:
                self._http.send(body)
            return self._receive_response()
        except BaseException:
            self.close()
            raise

    def _put_head(self, method: str, path: str, headers: Mapping[str, str], length: int, digest: str) -> None:
        self._http.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {**headers, **self._access.headers(method, path, digest, headers)}.items():
            self._http.putheader(name, value)
        if length or method not in ("GET", "HEAD"):
            self._http.putheader("content-length", str(length))
        self._http.endheaders()

    def _receive_response(self) -> http.client.HTTPResponse:
        response = self._http.getresponse()
        self._is_fresh, self._response = False, response
        self._access.note(response.status)
        return response


def one_line(content: bytes) -> str:
    """Return the server's reason for a refusal as one printable line."""
    return visible(" ".join(content.decode("ascii", "replace").split()))


class _Https(http.client.HTTPSConnection):
    """Connects directly or through the proxy, as ``Address`` says."""

    def __init__(self, access: Access) -> None:
        self._to = access.address
        self._tls = access.context
        super().__init__(
            access.address.host,
            access.address.port,
            context=access.context,
            timeout=SILENCE_SECONDS,
            blocksize=BUFFER_BYTES,
        )

    def connect(self) -> None:
        connection = open_socket(self._to, SILENCE_SECONDS)
        try:
            self.sock = self._tls.wrap_socket(connection, server_hostname=self._to.host)
        except BaseException:
            connection.close()
            raise
