"""One connection to the server, before a site joins: who answers, whether it lets the site in, and what time it has."""

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
from common.identity import sign

PROBE_PATH = f"/models/{'0' * 64}"
"""What nobody has: a site that is let in gets 404."""
_NOTHING = hashlib.sha256(b"").hexdigest()
_LONGEST_WORD = 64
_EXPIRED, _NOT_YET_VALID, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64
"""OpenSSL's reasons for which a certificate is not accepted."""
_REFUSALS = {
    "CERTIFICATE_REVOKED": "the server has revoked this site's certificate; ask the coordinator",
    "CERTIFICATE_EXPIRED": "the server finds this site's certificate expired; ask the coordinator for a new kit, and "
    "see that this clock is right",
    "UNKNOWN_CA": "the server trusts another authority than this kit's; ask the coordinator for a new kit",
}
"""What a server says of our certificate, by the end of OpenSSL's name for it."""
_ALERT = "_ALERT_"
_ABOUT_CERTIFICATES = ("CERTIFICATE", "UNKNOWN_CA", "DECRYPT_ERROR", "ACCESS_DENIED")


class HandshakeError(FedvoxError):
    """The server's certificate is not accepted here."""


class CertificateRefusedError(FedvoxError):
    """The server does not accept this site's certificate."""


@dataclass(frozen=True)
class Connection:
    """What a connection to the server showed.

    Attributes
    ----------
    not_after
        the end of its certificate.
    clock
        its time minus ours, in seconds; None if it does not tell.
    status
        how it answers a request of this site's for what nobody has; 0 if its answer is not HTTP.
    word
        with a refusal, why.
    proxy
        host:port of the proxy in between; empty if there is none.
    """

    not_after: datetime
    clock: float | None
    status: int
    word: str
    proxy: str


def connect(folder: Path, kit: Kit, timeout: float) -> Connection:
    """Shows the server this site's certificate, and asks for something with this site's signature.

    Parameters
    ----------
    folder
        the site's kit.
    kit
        its content.
    timeout
        seconds for each step.

    Raises
    ------
    CertificateError
        the kit's own certificate or key cannot be used.
    HandshakeError
        the server's certificate is not accepted; the text says why.
    CertificateRefusedError
        the server does not accept this site's.
    ConfigError
        a proxy variable is no URL of an HTTP proxy.
    ProxyError
        the proxy refuses, or does not answer.
    OSError
        nobody answers.
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
            _hear_objection(secure, timeout)
            secure.sendall(_request(kit, site, identity))
            status, date, word = _answer(secure)
    except ssl.SSLCertVerificationError as error:
        raise HandshakeError(_why_not_accepted(error, folder, address)) from None
    except ssl.SSLError as error:
        reason = str(error.reason)
        if _ALERT in reason and any(part in reason for part in _ABOUT_CERTIFICATES):
            raise CertificateRefusedError(_why_refused(reason)) from None
        raise
    clock = (date - datetime.now(UTC)).total_seconds() if date else None
    return Connection(certificate.not_valid_after_utc, clock, status, word, str(address.proxy or ""))


def _hear_objection(secure: ssl.SSLSocket, timeout: float) -> None:
    """Waits until the server has looked at our certificate; with TLS 1.3 our side of the handshake is over before.

    What it then says, a refusal or a ticket for the next connection, is read before we send: to a connection that it
    has closed, the answer would be a reset that takes the reason away.
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
    headers |= sign(identity.key, site, "GET", PROBE_PATH, _NOTHING, {})
    lines = [f"GET {PROBE_PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


def _answer(secure: ssl.SSLSocket) -> tuple[int, datetime | None, str]:
    """Status, date and first word of an answer; what is missing is 0, None or empty."""
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


def _why_refused(reason: str) -> str:
    for end, text in _REFUSALS.items():
        if reason.endswith(end):
            return text
    said = reason.partition(_ALERT)[2].replace("_", " ").lower()
    return f"the server does not accept this site's certificate ({said}); ask the coordinator for a new kit"


def _why_not_accepted(error: ssl.SSLCertVerificationError, folder: Path, address: Address) -> str:
    if error.verify_code == _EXPIRED:
        return "the server's certificate has expired, or this clock is wrong; the coordinator can renew it"
    if error.verify_code == _NOT_YET_VALID:
        return "the server's certificate is not valid yet; is this clock right?"
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return "the server's certificate is for another address than the kit's; ask the coordinator"
    try:
        found = who_opens_tls(address, folder / AUTHORITY_FILE)
    except (OSError, ValueError, FedvoxError):
        found = None
    return found or f"the server's certificate is not good ({error.verify_message}); ask the coordinator"


def unreachable(error: OSError) -> str:
    """Why nobody answers, in words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, socket.gaierror):
        return "its name is not known here"
    return error.strerror or str(error)
