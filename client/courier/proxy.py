"""Connects to the server through a hospital's outbound proxy (``CONNECT``).

The environment sets the proxy, as for other programs: ``HTTPS_PROXY`` or ``https_proxy``, or ``ALL_PROXY``, with user
and password if required, and ``NO_PROXY`` for hosts that are reached directly. Lower-case names take precedence.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import urllib.parse
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from common.config.network import format_endpoint
from common.errors import ConfigError

_VARIABLES = ("https_proxy", "all_proxy")
_OTHER_VARIABLES = ("http_proxy", "no_proxy")
_LARGEST_ANSWER_BYTES = 16 * 1024


class ProxyError(OSError):
    """The proxy is unreachable or refuses; the text names it and says what to do.

    Attributes
    ----------
    needs_person
        Whether retrying is useless until a person corrects the password or allows the connection.
    """

    needs_person = False


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy. Its string form never contains the password.

    Attributes
    ----------
    variable
        Environment variable that names it.
    user
        None if it needs no authentication.
    """

    host: str
    port: int
    variable: str = "HTTPS_PROXY"
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return format_endpoint(self.host, self.port)

    @property
    def url(self) -> str:
        """URL as in an environment variable, with user and password."""
        secret = ""
        if self.user is not None:
            secret = f"{urllib.parse.quote(self.user, safe='')}:{urllib.parse.quote(self.password, safe='')}@"
        return f"http://{secret}{self}"

    @property
    def authorization(self) -> str | None:
        """Value of ``Proxy-Authorization``; None without a user."""
        if self.user is None:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Address:
    """Address of the server, and the proxy that leads to it.

    Attributes
    ----------
    host
        Host name or IP address, without brackets.
    proxy
        None for a direct connection.
    """

    host: str
    port: int
    proxy: Proxy | None = None

    def __str__(self) -> str:
        return format_endpoint(self.host, self.port)


def find_address(host: str, port: int, environment: Mapping[str, str] = os.environ) -> Address:
    """Return the server's address, with the proxy that the environment sets for it.

    Raises
    ------
    ConfigError
        If a proxy variable is not the URL of an HTTP proxy.
    """
    for lower in _VARIABLES:
        variable = lower if lower in environment else lower.upper()
        if text := environment.get(variable, "").strip():
            proxy = _parse(variable, text)
            no_proxy = environment.get("no_proxy", environment.get("NO_PROXY", ""))
            return Address(host, port, None if is_exempt(host, port, no_proxy) else proxy)
    return Address(host, port)


def settle(address: Address, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make all HTTP clients of this process use the proxy of ``address``.

    They read the environment too, and each interprets exemptions a little differently.
    """
    for name in (*_VARIABLES, *_OTHER_VARIABLES):
        environment.pop(name, None)
        environment.pop(name.upper(), None)
    if address.proxy is not None:
        environment["HTTPS_PROXY"] = address.proxy.url


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Return whether ``NO_PROXY`` exempts a host.

    An entry is ``*``, or a host, domain or network with or without a port.
    """
    return any(_matches(host.lower(), port, entry.strip().lower()) for entry in no_proxy.split(","))


def open_socket(address: Address, seconds: float) -> socket.socket:
    """Open a connection to the server, through the proxy if there is one.

    Parameters
    ----------
    seconds
        Timeout for connecting and for every later operation.

    Raises
    ------
    ProxyError
        If the proxy is unreachable or refuses.
    OSError
        If the server cannot be reached.
    """
    proxy = address.proxy
    if proxy is None:
        connection = socket.create_connection((address.host, address.port), seconds)
    else:
        try:
            connection = socket.create_connection((proxy.host, proxy.port), seconds)
        except OSError as error:
            raise ProxyError(
                f"the proxy {proxy} of {proxy.variable} cannot be reached: {error.strerror or error}"
            ) from error
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy is not None:
            _open_tunnel(connection, proxy, str(address))
    except BaseException:
        connection.close()
        raise
    return connection


def proxy_problem(proxy: Proxy, status: int) -> str:
    """Return the message for a proxy that answers ``CONNECT`` with this status."""
    if status == 407:
        return f"the proxy {proxy} refuses user or password (407): correct them in {proxy.variable}"
    if status >= 500:
        return f"the proxy {proxy} cannot reach the server ({status})"
    return f"the proxy {proxy} refuses the connection ({status}): ask IT to allow it"


def _open_tunnel(connection: socket.socket, proxy: Proxy, target: str) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = b""
    # Nothing follows the answer: in TLS the client speaks first.
    while b"\r\n\r\n" not in answer:
        received = connection.recv(4096)
        if not received or len(answer) > _LARGEST_ANSWER_BYTES:
            raise ProxyError(f"the proxy {proxy} closes the connection: is it an HTTP proxy?")
        answer += received
    words = answer.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ProxyError(f"the proxy {proxy} does not speak HTTP: correct {proxy.variable}")
    status = int(words[1])
    if not 200 <= status < 300:
        refusal = ProxyError(proxy_problem(proxy, status))
        refusal.needs_person = status < 500
        raise refusal


def _parse(variable: str, text: str) -> Proxy:
    # The text itself is not shown: it may hold a password.
    advice = f"{variable}: write it as http://USER:PASSWORD@HOST:PORT, special characters percent-encoded"
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{advice}; its current value is not a URL") from None
    if parts.scheme != "http":
        raise ConfigError(f"{advice}; only proxies that speak plain HTTP (CONNECT) are supported")
    if not host or any(character.isspace() for character in text) or parts.path.strip("/"):
        raise ConfigError(f"{advice}; its current value is not the URL of a proxy")
    user = None if parts.username is None else urllib.parse.unquote(parts.username)
    return Proxy(host, port or 80, variable, user, urllib.parse.unquote(parts.password or ""))


def _matches(host: str, port: int, entry: str) -> bool:
    if not entry:
        return False
    if entry == "*":
        return True
    if entry.startswith("[") and "]" in entry:
        name, _, rest = entry[1:].partition("]")
        only = rest.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, only = entry.partition(":")
    else:
        name, only = entry, ""
    if only and only != str(port):
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        domain = name.removeprefix("*").removeprefix(".")
        return host == domain or host.endswith(f".{domain}")
