"""The one port that sites reach: nginx with TLS, in front of Flower's SuperLink.

SuperLink serves three interfaces on one port: Fleet for sites, Control for whoever submits runs, and Runtime for
worker processes. The open-source SuperLink lets anybody who reaches it use Control, and a run that is submitted there
is code that runs on the server. So SuperLink listens on the loopback interface alone, and the proxy passes on only
what a site needs. Every path that it passes is written out, to and from: nothing that a client sends becomes part of
the address that SuperLink sees, so there is no second reading of it to fool.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import FedvoxError
from common.network_config import format_endpoint

FLEET_METHODS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
# Weights travel in pieces of 16 MiB (``common.transport``); a body that is much larger is not from a site of ours.
LARGEST_BODY_MB = 20
# That one site makes at a time; its SuperNode keeps eight connections.
MOST_REQUESTS = 16
REFUSED_LOG = "refused.log"
_USUAL_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/opt/homebrew/bin", "/usr/local/bin")

_TEMPLATE = """\
# Written by fedvox-server; changes are lost.
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;

events {{ worker_connections 4096; }}

http {{
    server_tokens off;
    default_type text/plain;
    # Of what a stranger asks for, no more than helps to see what it was.
    map "$request_method $uri" $asked {{ "~^(?<beginning>.{{0,150}})" $beginning; }}
    log_format refused '$time_iso8601 $remote_addr $status "$asked"';
    map $status $is_refused {{ ~^[45] 1; default 0; }}
    access_log {log} refused if=$is_refused;

    # Everything streams through: nothing of a site's data is written to this disk by the proxy.
    client_body_temp_path {folder}/temporary;
    proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary;
    uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    client_max_body_size {body}m;
    client_body_timeout 60s;
    client_header_timeout 20s;
    # Who reads or writes slowly has SuperLink keep up to a piece of a model for each request.
    # A key of P-384 takes 288 characters, of which nginx counts by no more than 255.
    map $http_flwr_public_key $site {{ default $http_flwr_public_key; "~(?<end>.{{200}})$" $end; }}
    limit_conn_zone $site zone=keys:1m;
    limit_conn keys {requests};
    keepalive_timeout 120s;
    proxy_request_buffering off;
    # SuperLink pays for every portion that it gets, at each of its layers; nginx's own portions are 16 KiB and less.
    client_body_buffer_size 1m;
    proxy_buffer_size 64k;
    proxy_buffers 8 256k;
    proxy_busy_buffers_size 512k;
    proxy_max_temp_file_size 0;
    proxy_read_timeout 120s;

    upstream superlink {{
        server {superlink};
        keepalive 64;
    }}

    server {{
        listen {listen} ssl;
        ssl_certificate {kit}/server.crt;
        ssl_certificate_key {kit}/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:sites:1m;

        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host localhost;
        proxy_ssl_trusted_certificate {kit}/ca.crt;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_session_reuse on;

{locations}
        location / {{ return 403; }}
    }}
}}
"""

_LOCATION = """\
        location = {path} {{
            limit_except POST {{ deny all; }}
            set $args "";
            proxy_pass {scheme}://superlink{path};
        }}
"""


class ProxyError(FedvoxError):
    """The proxy cannot be set up."""


@dataclass(frozen=True)
class Listen:
    """Where the proxy listens: an IP address of this machine (``0.0.0.0`` and ``::`` are all), and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_endpoint(self.host, self.port)


def find_nginx() -> str:
    """The path of nginx.

    Raises:
        ProxyError: it is not installed.
    """
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), *_USUAL_FOLDERS]))
    if found is None:
        raise ProxyError(
            "nginx is not installed; it guards the port that sites reach. Install it: apt-get install nginx "
            "(Debian, Ubuntu), dnf install nginx (Fedora, Red Hat), brew install nginx (macOS)"
        )
    return found


def end_leftovers(folder: Path, patience: float = 5.0) -> None:
    """Ends what is left of a proxy that was killed together with whoever watched over it.

    nginx's worker outlives its master and keeps the port. It is known by the log that it has open, which is in the
    folder of this run alone. On systems without ``/proc`` nothing is found.

    Args:
        folder: that ``write_proxy_configuration`` was given.
        patience: seconds that it may take to go.
    """
    deadline = time.monotonic() + patience
    while (found := _with_open(folder.resolve() / REFUSED_LOG)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _with_open(log: Path) -> list[int]:
    """Processes of nginx that have a file open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            files = (file.readlink() for file in (process / "fd").iterdir())
            if (process / "exe").readlink().name.startswith("nginx") and log in files:
                found.append(int(process.name))
    return found


def write_proxy_configuration(
    folder: Path, kit: Path, listen: Listen, superlink: str | Path, log: Path | None = None
) -> Path:
    """Writes ``nginx.conf`` into a folder of its own.

    Args:
        folder: for the configuration and what nginx keeps; made when needed.
        kit: the server's kit, with its certificate.
        listen: where sites reach the proxy.
        superlink: host:port of SuperLink, whose certificate must be valid for ``localhost`` whatever the host; or the
            path of its socket.
        log: gets what was refused; None is a file in ``folder``.

    Raises:
        ProxyError: a path has characters that nginx's configuration cannot hold.
    """
    folder, kit = folder.resolve(), kit.resolve()
    for path in (folder, kit):
        if not re.fullmatch(r"[\w./+@:-]+", str(path), re.ASCII):
            raise ProxyError(f"{path}: may have only letters, digits and ./_-+@: in its name; move it elsewhere")
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    scheme, server = ("http", f"unix:{superlink}") if isinstance(superlink, Path) else ("https", superlink)
    locations = "".join(_LOCATION.format(path=f"/v1/fleet/{method}", scheme=scheme) for method in FLEET_METHODS)
    text = _TEMPLATE.format(
        folder=folder,
        log=log or folder / REFUSED_LOG,
        kit=kit,
        listen=listen,
        superlink=server,
        body=LARGEST_BODY_MB,
        requests=MOST_REQUESTS,
        locations=locations,
    )
    file = folder / "nginx.conf"
    file.write_text(text, encoding="utf-8")
    return file
