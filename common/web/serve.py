"""A page's server: its address, its certificate, and how long it runs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import uvicorn
from cryptography import x509

from common.config.network import format_endpoint
from common.errors import ConfigError, OutputError
from common.web.connections import MOST_CONNECTIONS, Connection
from common.web.listening import HOST, Listening
from common.web.openid import OpenId, read_settings
from common.web.shell import Address, Shell
from common.web.visits import Role, Side

_STALLED_MILLISECONDS = 60_000


def serve(side: Side, listening: Listening, say: Callable[[str], None]) -> None:
    """Serve a side's pages until the process is interrupted.

    Parameters
    ----------
    say
        Called with the links for signing in.

    Raises
    ------
    ConfigError
        The TLS files cannot be used.
    OutputError
        The address cannot be listened on.
    """
    with served(side, listening, say) as page:
        wait_for(page)


def wait_for(page: threading.Thread) -> None:
    """Wait until a page ends, or the process is interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        page.join()


@contextlib.contextmanager
def served(side: Side, listening: Listening, say: Callable[[str], None]) -> Iterator[threading.Thread]:
    """Serve a side's pages in a thread, which the block gets, until the block ends; as ``serve``."""
    server, connection = _prepared(side, listening, say)
    # Not ``run``: only the main thread may take signals, and those are for the block.
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([connection])), name="page", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(10)
        # One that is still ending closes it by itself, and fails if somebody else has.
        if not thread.is_alive():
            connection.close()


def _prepared(side: Side, listening: Listening, say: Callable[[str], None]) -> tuple[uvicorn.Server, socket.socket]:
    _check_certificate(listening)
    names = _names(listening)
    openid = None if listening.provider is None else OpenId(read_settings(listening.provider))
    connection = _listen(listening.host, listening.port)
    port = connection.getsockname()[1]
    has_tls = listening.certificate is not None
    hosts = tuple(format_endpoint(name, port) for name in names)
    if port == (443 if has_tls else 80):
        hosts += tuple(format_endpoint(name, port).rpartition(":")[0] for name in names)
    shell = Shell(side, Address(hosts, port, has_tls))
    shell.openid = openid
    for role in (Role.ACT, Role.LOOK):
        say(f"to look{' and act' if role is Role.ACT else ''}: {shell.link(role)}")
    return uvicorn.Server(_configuration(shell, listening)), connection


def _configuration(shell: Shell, listening: Listening) -> uvicorn.Config:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    if not logging.getLogger("fedvox").isEnabledFor(logging.WARNING):
        logging.getLogger("fedvox.web").setLevel(logging.WARNING)  # what pages say that the log tells, it tells
    return uvicorn.Config(
        shell.app,
        http=Connection,  # h11, which bounds the size of headers
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # a link's token is in the path
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,  # open pages never end by themselves
        ssl_certfile=listening.certificate,
        ssl_keyfile=listening.key,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A browser that takes nothing for so long is cut off by the kernel, with all that waits for it.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MILLISECONDS)
        connection.bind((host, port))
        connection.listen(128)
    except OSError as error:
        connection.close()
        where = format_endpoint(host, port)
        if error.errno == errno.EADDRINUSE:
            raise OutputError(f"{where}: another program listens there already; choose another port") from None
        raise OutputError(f"{where}: cannot listen there: {error.strerror}; choose another address") from None
    return connection


def _check_certificate(listening: Listening) -> None:
    if listening.certificate is None or listening.key is None:
        return
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(listening.certificate, listening.key, password="")  # which asks nobody for one
    except OSError as error:
        files = f"{listening.certificate}, {listening.key}"
        why = error.strerror or str(error)
        raise ConfigError(
            f"{files}: cannot be used for TLS ({why}); give a certificate and its key in PEM, without a password"
        ) from None


def _names(listening: Listening) -> list[str]:
    """Return what Host may say, without a port: the certificate's names, or those of this machine for itself."""
    if listening.certificate is None:
        # As browsers write it: [::1] for every way to say that.
        host = str(ipaddress.ip_address(listening.host))
        return list(dict.fromkeys([host, "localhost"] if ":" in host else [host, "localhost", HOST]))
    certificate = x509.load_pem_x509_certificate(listening.certificate.read_bytes())
    try:
        given = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        given = x509.SubjectAlternativeName([])
    names = [name.lower() for name in given.get_values_for_type(x509.DNSName)]
    names += [str(address) for address in given.get_values_for_type(x509.IPAddress)]
    names = [name for name in names if "*" not in name]  # no link leads to a pattern
    if not names:
        raise ConfigError(
            f"{listening.certificate}: names no host (subjectAltName without *); make one with the name in the links"
        )
    return names
