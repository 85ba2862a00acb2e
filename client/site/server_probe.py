"""Probes the server before a site joins: who answers, whether it accepts the site, and what time it has."""

from __future__ import annotations

import hashlib
import http.client
import select
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from client.courier.connection import client_context
from client.courier.diagnosis import who_opens_tls
from client.courier.proxy import Address, find_address, open_socket
from common.certificates import AUTHORITY_FILE, Identity, site_identity
from common.config.kit import Kit
from common.errors import FedvoxError
from common.identity import PROBE_PATH, sign

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_LONGEST_WORD = 64
_EXPIRED, _NOT_YET_VALID, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64
"""OpenSSL's codes for verification errors."""
_REFUSALS = {
    "CERTIFICATE_REVOKED": "the server has revoked this site's certificate; ask the coordinator",
    "CERTIFICATE_EXPIRED": "to the server, this site's certificate has expired; ask the coordinator for a new kit, and "
    "check that this clock is right",
    "UNKNOWN_CA": "the server trusts a different authority than this kit's; ask the coordinator for a new kit",
}
"""The server's reasons to refuse our certificate, by the end of OpenSSL's name for them."""
_ALERT = "_ALERT_"
_ABOUT_CERTIFICATES = ("CERTIFICATE", "UNKNOWN_CA", "DECRYPT_ERROR", "ACCESS_DENIED")


class HandshakeError(FedvoxError):
    """The server's certificate is not accepted by this site."""


class CertificateRefusedError(FedvoxError):
    """The server does not accept this site's certificate."""


@dataclass(frozen=True)
class Connection:
    """What a connection to the server revealed.

    Attributes
    ----------
    not_after
        End of the certificate's validity.
    clock
        The server's time minus ours, in seconds; None if it sends none.
    status
        HTTP status of a signed request for a model that does not exist; 0 if the response is not HTTP.
    word
        The server's reason for a refusal.
    proxy
        Address of the proxy as ``host:port``; empty if there is none.
    """

    not_after: datetime
    clock: float | None
    status: int
    word: str
    proxy: str


def connect(folder: Path, kit: Kit, timeout: float) -> Connection:
    """Present this site's certificate to the server and send one signed request.

    Parameters
    ----------
    folder
        The site's kit.
    kit
        Content of the kit.
    timeout
        Seconds for each step.

    Raises
    ------
    CertificateError
        If the kit's certificate or key cannot be used.
    HandshakeError
        If the server's certificate is not accepted; the text says why.
    CertificateRefusedError
        If the server does not accept this site's certificate.
    ConfigError
        If a proxy variable is not the URL of an HTTP proxy.
    ProxyError
        If the proxy is unreachable or refuses.
    OSError
        If the server cannot be reached.
    """
    site = kit.site or ""
    identity = site_identity(folder, site)
    address = find_address(kit.address, kit.port)
    context = client_context(folder)
    try:
        with (
            open_socket(address, timeout) as plain,
            context.wrap_socket(plain, server_hostname=kit.address) as secure,
        ):
            certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
            _await_certificate_check(secure, timeout)
            secure.sendall(_request(kit, site, identity))
            status, date, word = _answer(secure)
    except ssl.SSLCertVerificationError as error:
        raise HandshakeError(_verification_text(error, folder, address)) from None
    except ssl.SSLError as error:
        reason = str(error.reason)
        if _ALERT in reason and any(part in reason for part in _ABOUT_CERTIFICATES):
            raise CertificateRefusedError(_refusal_text(reason)) from None
        raise
    clock = (date - datetime.now(UTC)).total_seconds() if date else None
    return Connection(certificate.not_valid_after_utc, clock, status, word, str(address.proxy or ""))


def _await_certificate_check(secure: ssl.SSLSocket, timeout: float) -> None:
    """Wait until the server has checked our certificate; in TLS 1.3 our side of the handshake ends before that.

    Its refusal or session ticket must arrive before we send: sending on a connection that it has closed causes a reset
    that discards the reason.
    """
    if secure.version() != "TLSv1.3" or not select.select([secure], [], [], timeout)[0]:
        return
    secure.settimeout(0.0)
    try:
        secure.recv(1)
    except ssl.SSLWantReadError:
        pass
    finally:
        secure.settimeout(timeout)


def _request(kit: Kit, site: str, identity: Identity) -> bytes:
    headers = {"Host": kit.endpoint, "Connection": "close"}
    headers |= sign(identity.key, site, "GET", PROBE_PATH, _EMPTY_SHA256, {})
    lines = [f"GET {PROBE_PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


def _answer(secure: ssl.SSLSocket) -> tuple[int, datetime | None, str]:
    """Return status, date and text of a response; missing values are 0, None or empty."""
    response = http.client.HTTPResponse(secure, method="GET")
    try:
        response.begin()
        word = response.read(_LONGEST_WORD).decode("ascii", "replace").strip()
        return response.status, _read_date(response.getheader("date", "")), word
    except (http.client.HTTPException, TimeoutError):
        return 0, None, ""
    finally:
        response.close()


def _read_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None


def _refusal_text(reason: str) -> str:
    for end, text in _REFUSALS.items():
        if reason.endswith(end):
            return text
    said = reason.partition(_ALERT)[2].replace("_", " ").lower()
    return f"the server does not accept this site's certificate ({said}); ask the coordinator for a new kit"


def _verification_text(error: ssl.SSLCertVerificationError, folder: Path, address: Address) -> str:
    if error.verify_code == _EXPIRED:
        return "the server's certificate has expired, or this clock is wrong; the coordinator can renew it"
    if error.verify_code == _NOT_YET_VALID:
        return "the server's certificate is not valid yet; is this clock right?"
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return "the server's certificate is for a different address than the kit's; ask the coordinator"
    try:
        found = who_opens_tls(address, folder / AUTHORITY_FILE)
    except (OSError, ValueError, FedvoxError):
        found = None
    return found or f"the server's certificate is not valid ({error.verify_message}); ask the coordinator"


def unreachable(error: OSError) -> str:
    """Return why the server cannot be reached, in words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    return error.strerror or str(error)
