"""Starts the gateway: Granian in this process, with mutual TLS, or behind a proxy that terminates TLS.

By default it speaks TLS 1.3 and requires a client certificate that the federation's authority signed and ``ca.crl``
does not list. Without one, no HTTP is read. All our clients speak TLS 1.3, also through proxies that pass TLS through.

Behind a proxy that terminates TLS, the gateway speaks plain HTTP on an address that only the proxy reaches. The proxy
must verify client certificates and name the site in every request. For nginx::

    map $ssl_client_s_dn $site { "~^CN=(?<name>[a-z0-9-]+)$" $name; }
    upstream gateway { server 127.0.0.1:9444; keepalive 32; }
    server {
        listen 9443 ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate server.crt;  ssl_certificate_key server.key;
        ssl_verify_client on;  ssl_client_certificate ca.crt;  ssl_crl ca.crl;
        location / {
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header fedvox-client-name $site;
            proxy_request_buffering off;  proxy_buffering off;
            client_max_body_size 64m;  proxy_read_timeout 60s;
        }
    }
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from common.certificates import (
    AUTHORITY_FILE,
    REVOCATIONS_FILE,
    SERVER_CERTIFICATE_FILE,
    SERVER_KEY_FILE,
    server_identity,
)
from common.errors import ConfigError, FedvoxError
from common.system.files import write_atomically
from common.system.locks import FileLock, lock_for_one
from common.system.logs import log_to_stderr
from server.gateway.application import Gateway
from server.gateway.listen import Listen, check_port
from server.gateway.quotas import Limits
from server.run_store.gateway_folder import GatewayFolder

HEADER_SECONDS = 20
"""Timeout for a request's head, and for an idle connection."""
LARGEST_HEAD = 408 * 1024
"""The most bytes of a request's head, and of a connection's buffer."""
STOP_SECONDS = 4.0
MOST_CONNECTIONS = 4096
_RESERVED_FILES = 256
"""File descriptors reserved for uses other than connections."""
log = logging.getLogger("fedvox.gateway")


@dataclass(frozen=True)
class GatewayOptions:
    """How to run the gateway.

    Attributes
    ----------
    kit
        The server's kit.
    run
        The run folder, shared with ``fedvox-server start``.
    listen
        The address for the sites, or for the proxy.
    tls_ended_by_proxy
        Whether a proxy terminates TLS.
    """

    kit: Path
    run: Path
    listen: Listen
    tls_ended_by_proxy: bool = False


def serve(options: GatewayOptions, limits: Limits | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    options
        How to run the gateway.
    limits
        The limits for each site; None means the defaults.

    Returns
    -------
    int
        The exit status, 0.

    Raises
    ------
    FedvoxError
        The kit or the address cannot be used, or another gateway serves this run.
    """
    if options.tls_ended_by_proxy:
        _check_private(options.listen)
    else:
        server_identity(options.kit)
    folder = GatewayFolder(options.run)
    folder.make()
    with _gateway_lock(folder):
        check_port(options.listen)
        port = None if options.tls_ended_by_proxy else options.listen.port
        gateway = Gateway(options.kit, options.run, port, limits or Limits())
        server = _server(options, gateway)
        description = {"pid": os.getpid(), "listen": str(options.listen), "since": time.time()}
        write_atomically(folder.path / "gateway.json", json.dumps(description))
        _configure_logging()
        asyncio.run(_run(server, gateway, str(options.listen)))
    return 0


def _server(options: GatewayOptions, gateway: Gateway) -> Server:
    kit, connections = options.kit, _connection_limit()
    tls: dict[str, Any] = {
        "ssl_cert": kit / SERVER_CERTIFICATE_FILE,
        "ssl_key": kit / SERVER_KEY_FILE,
        "ssl_ca": kit / AUTHORITY_FILE,
        "ssl_crl": [kit / REVOCATIONS_FILE],
        "ssl_client_verify": True,
        "ssl_protocol_min": SSLProtocols.tls13,
    }
    server = Server(
        gateway,
        options.listen.host,
        options.listen.port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_SECONDS * 1000, max_buffer_size=LARGEST_HEAD),
        runtime_threads=max(1, min(4, (os.cpu_count() or 1) // 2)),
        backlog=1024,
        backpressure=connections,
        # At "warning", Granian logs at every start that its embedded server is experimental.
        log_level=LogLevels.error,
        **({} if options.tls_ended_by_proxy else tls),
    )
    if not options.tls_ended_by_proxy and not _wants_certificates(server, kit):
        raise FedvoxError(f"{kit}: Granian would accept clients without a certificate; install the tested version")
    return server


def _wants_certificates(server: Server, kit: Path) -> bool:
    """Return whether Granian verifies clients: without an authority it silently does not."""
    is_on, *_, authority, _, is_verified = server.ssl_ctx
    return bool(is_on and is_verified) and authority == str((kit / AUTHORITY_FILE).resolve())


async def _run(server: Server, gateway: Gateway, listen: str) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(stopping.wait())
    log.info("listening on %s", listen)
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.is_set():
        await serving
        raise FedvoxError(f"cannot listen on {listen}; see the lines above")
    server.stop()  # type: ignore[no-untyped-call]  # -- Granian's
    await gateway.stop()
    # Do not wait long for idle connections, or for clients that do not read their answers.
    await asyncio.wait({serving}, timeout=STOP_SECONDS - 1)
    await gateway.close()
    log.info("stopped")
    if not serving.done():
        logging.shutdown()
        os._exit(0)


def _configure_logging() -> None:
    log_to_stderr(logging.INFO)
    logging.getLogger("fedvox").setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _gateway_lock(folder: GatewayFolder) -> FileLock:
    """Lock the run's gateway folder, so that only one gateway writes there."""
    taken = FedvoxError(f"{folder.run}: another gateway serves this run; stop it first")
    return lock_for_one(folder.path / "gateway.lock", taken)


def _check_private(listen: Listen) -> None:
    address = ipaddress.ip_address(listen.host)
    if address.is_unspecified or not address.is_private:
        raise ConfigError(
            f"--listen {listen}: with --tls-ended-by-proxy this must be an address that only the proxy reaches; "
            "give 127.0.0.1 or an address in a private network"
        )


def _connection_limit() -> int:
    """Raise the limit of open files, and return how many connections fit in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _RESERVED_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(64, min(MOST_CONNECTIONS, max(soft, most) - _RESERVED_FILES))
