"""The way out of a hospital: directly, or through the HTTP proxy that ``HTTPS_PROXY`` names.

The proxy is asked to connect (``CONNECT``) and from then on passes bytes on; TLS is between this site and the server.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from common.errors import FedvoxError
from common.network_config import format_endpoint, is_ip_address

PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
"""Where a proxy may be named, the first that is set counts; as in other programs, both spellings."""
EXCEPTION_VARIABLES = ("no_proxy", "NO_PROXY")
_LONGEST_ANSWER = 2**16
_UNAUTHORISED = 407


class ProxyError(FedvoxError):
    """The proxy cannot be used as it is set, or refuses; somebody has to change something."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy. variable: the name of the one that it was read from; user: empty if it wants none."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    variable: str

    @property
    def endpoint(self) -> str:
        """``host:port``, which is all that may be shown of it."""
        return format_endpoint(self.host, self.port)

    @property
    def headers(self) -> dict[str, str]:
        """What proves the user to the proxy."""
        if not self.user:
            return {}
        secret = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {secret}"}


def proxy_for(host: str, port: int, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy by which a server is to be reached; None if directly.

    Raises:
        ProxyError: the variable is not the URL of an HTTP proxy. Its value, which may hold a password, is not shown.
    """
    name = next((name for name in PROXY_VARIABLES if environment.get(name)), None)
    exceptions = next((environment[name] for name in EXCEPTION_VARIABLES if environment.get(name)), "")
    if name is None or _is_exempt(host, port, exceptions):
        return None
    value = environment[name].strip()
    try:
        # Most programs take an address without http:// as well.
        parts = urlsplit(value if "://" in value else f"http://{value}")
        proxy_host, proxy_port = parts.hostname or "", parts.port or 80
        is_good = parts.scheme == "http" and proxy_host and parts.path in ("", "/") and not parts.query
        # It would end up in the request, where a line break begins a header.
        is_good = is_good and value.isprintable() and " " not in value
        proxy_host.encode("idna")  # refuses what no name server could be asked for
    except ValueError:
        is_good = False
    if not is_good:
        raise ProxyError(
            f"{name}: is not the URL of an HTTP proxy; write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with "
            "special characters of the password percent-encoded"
        )
    return Proxy(proxy_host, proxy_port, unquote(parts.username or ""), unquote(parts.password or ""), name)


def open_way(host: str, port: int, timeout: float, proxy: Proxy | None) -> socket.socket:
    """A connection to a server, on which TLS can begin.

    Args:
        host: a name, or an IP address without brackets.
        port: of the server.
        timeout: seconds for each step, and for the socket afterwards.
        proxy: to go through; None connects directly.

    Raises:
        ProxyError: the proxy refuses: its user or password is wrong, or it must not connect there.
        OSError: nobody answers, or the proxy cannot reach the server now.
    """
    if proxy is None:
        return socket.create_connection((host, port), timeout=timeout)
    try:
        connection = socket.create_connection((proxy.host, proxy.port), timeout=timeout)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ConnectionError(f"the proxy {proxy.endpoint} of {proxy.variable}: {reason}") from None
    try:
        target = format_endpoint(host, port)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        _judge_answer(_read_answer(connection, proxy), target, proxy)
    except BaseException:
        connection.close()
        raise
    return connection


def _read_answer(connection: socket.socket, proxy: Proxy) -> int:
    """The status of the proxy's answer."""
    answer = bytearray()
    while b"\r\n\r\n" not in answer:
        part = connection.recv(4096)
        answer += part
        if not part or len(answer) > _LONGEST_ANSWER:
            raise ConnectionError(f"the proxy {proxy.endpoint} of {proxy.variable} hangs up")
    version, _, rest = bytes(answer).partition(b"\r\n")[0].partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        raise ProxyError(f"{proxy.variable}: {proxy.endpoint} is not an HTTP proxy; mend the variable")
    return int(status)


def _judge_answer(status: int, target: str, proxy: Proxy) -> None:
    if 200 <= status < 300:
        return
    if status == _UNAUTHORISED:
        wanted = "another user or password" if proxy.user else "a user and a password"
        raise ProxyError(f"the proxy {proxy.endpoint} wants {wanted} (407); set them in {proxy.variable}")
    if status >= 500:
        raise ConnectionError(f"the proxy {proxy.endpoint} cannot reach it ({status})")
    raise ProxyError(f"the proxy {proxy.endpoint} does not connect to {target} ({status}); ask IT to allow it")


def _is_exempt(host: str, port: int, exceptions: str) -> bool:
    """Whether ``NO_PROXY`` names a server: by name, by the end of its name, by address or network, with or without a
    port; or everything, by ``*``."""
    return any(_names(entry, host.lower(), port) for entry in exceptions.lower().replace(",", " ").split())


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    if is_ip_address(host):
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return entry == format_endpoint(host, port)
    name, _, wanted = entry.partition(":")
    suffix = name.removeprefix("*").lstrip(".")
    return bool(suffix) and wanted in ("", str(port)) and (host == suffix or host.endswith(f".{suffix}"))
