"""Explains in one line why the server cannot be reached, and what to do about it."""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from client.courier.proxy import Address, ProxyError, open_socket, proxy_problem
from common.certificates import load_certificate
from common.errors import FedvoxError

PROBE_SECONDS = 10.0
_STATUS = re.compile(r"\d{3}\b")


def who_opens_tls(address: Address, authority: Path) -> str | None:
    """Find out who answers in the server's place, without sending a request.

    Parameters
    ----------
    address
        Address of the server.
    authority
        Certificate file of the federation's authority.

    Returns
    -------
    str | None
        What is wrong and what to do; None if the authority issued the presented certificate.

    Raises
    ------
    OSError
        If there is no answer, or it is not TLS.
    FedvoxError
        If the authority's file cannot be read.
    """
    ours = load_certificate(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only to read the certificate; no data is sent
    with (
        open_socket(address, PROBE_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=address.host) as secured,
    ):
        shown = x509.load_der_x509_certificate(secured.getpeercert(True) or b"")
    try:
        shown.verify_directly_issued_by(ours)
    except (ValueError, TypeError, InvalidSignature):
        issuer = shown.issuer.rfc4514_string() or "an unnamed issuer"
        if address.proxy is not None:
            return (
                f"the proxy {address.proxy} intercepts TLS: it presents a certificate by {issuer} instead of the "
                f"server's; ask IT to exempt {address.host}"
            )
        return (
            f"{address} presents a certificate by {issuer}, not by the federation's authority: something on the path "
            f"intercepts TLS (ask IT to exempt {address.host}), or another server answers there"
        )
    return None


def explain(error: BaseException, address: Address, authority: Path) -> str:
    """Return one line that explains an error of the connection to the server."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ProxyError):
            return str(cause)
        if isinstance(cause, httpx.ProxyError) and address.proxy is not None:
            status = _STATUS.match(str(cause))
            if status:
                return proxy_problem(address.proxy, int(status[0]))
            return f"the proxy {address.proxy} of {address.proxy.variable} failed: {cause}"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _explain_certificate(cause, address, authority)
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            alert = (cause.reason or "").lower().replace("_", " ")
            return (
                f"{address} refuses this site's certificate ({alert}); ask the coordinator whether it is still accepted"
            )
    if any(
        isinstance(cause, ssl.SSLEOFError | ConnectionResetError | http.client.RemoteDisconnected) for cause in causes
    ):
        # When a certificate is refused, the reason is often lost with the connection.
        return (
            f"{address} closes the connection; if this persists, "
            "ask the coordinator whether this site's certificate is still accepted"
        )
    if any(isinstance(cause, TimeoutError | httpx.TimeoutException) for cause in causes):
        return f"{address} does not answer in time"
    last = next((cause for cause in causes if isinstance(cause, OSError)), error)
    said = (last.strerror if isinstance(last, OSError) else None) or str(last) or type(last).__name__
    way = f" through the proxy {address.proxy}" if address.proxy is not None else ""
    return f"{address} cannot be reached{way}: {said}"


def _explain_certificate(error: ssl.SSLCertVerificationError, address: Address, authority: Path) -> str:
    try:
        problem = who_opens_tls(address, authority)
    except (OSError, ValueError, FedvoxError):
        problem = None
    if problem is not None:
        return problem
    return f"the certificate of {address} is not valid: {error.verify_message}; tell the coordinator"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
