"""The ``network`` section of a federation file: the server's address and the participating sites.

``fedvox-server provision`` writes one kit (a folder) for the server and one for each site. Its ``kit.yaml`` names the
owner; the other files are keys, certificates and the federation file.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from common.errors import ConfigError
from common.plan.base import Frozen, OpenFraction, PositiveFloat, Whole

_HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def is_ip_address(address: str) -> bool:
    """Return whether an address is an IPv4 or IPv6 address rather than a host name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _check_address(address: str) -> str:
    labels = address.split(".")
    is_name = len(address) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels)
    # A name whose last label is a number is a mistyped IP address: no top-level domain is numeric.
    if is_ip_address(address) or (is_name and not labels[-1].isdecimal()):
        return address
    raise ValueError("must be a host name or an IP address, without https:// and without a port")


Address = Annotated[str, AfterValidator(_check_address)]
Port = Annotated[Whole, Field(ge=1, le=65535)]
_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FEDERATION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_site_name(name: str) -> bool:
    """Return whether a text is a valid site name; such names are safe as file names."""
    return _SITE_NAME.fullmatch(name) is not None


def _check_site_name(name: str) -> str:
    if not is_site_name(name):
        raise ValueError("must be a name of lower-case letters, digits and hyphens, at most 63, such as north-2")
    return name


def _check_federation_name(name: str) -> str:
    if not _FEDERATION_NAME.fullmatch(name):
        raise ValueError("must be a name of letters, digits, dots, hyphens and underscores, at most 64, as in liver-1")
    return name


SiteName = Annotated[str, AfterValidator(_check_site_name)]
FederationName = Annotated[str, AfterValidator(_check_federation_name)]


class NetworkConfig(Frozen):
    """The ``network`` section of a federation file; real federations need it, simulations do not.

    Attributes
    ----------
    address, port
        Address at which sites reach the server.
    other_addresses
        Further names and addresses that the server's certificate covers.
    sites
        Names of the hospitals; each gets a kit.
    certificate_days
        Validity of the server's and sites' certificates.
    validation_fraction
        Share of a site's patients that are held out to score every round's model.
    round_deadline_seconds
        How long a round waits for a site; the deadline restarts whenever the site makes progress.
    heartbeat_seconds
        Interval at which a training site reports its progress.
    silence_deadline_seconds
        How long a round waits for any heartbeat from a site that is online; it must be long enough to download the
        model over the slowest connection.
    """

    address: Address
    port: Port = 9443
    other_addresses: tuple[Address, ...] = ()
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    certificate_days: Annotated[Whole, Field(ge=1, le=3650)] = 365
    validation_fraction: OpenFraction = 0.2
    round_deadline_seconds: PositiveFloat = 3600.0
    heartbeat_seconds: PositiveFloat = 30.0
    silence_deadline_seconds: PositiveFloat = 600.0

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = sorted({name for name in self.sites if self.sites.count(name) > 1})
        if twice:
            raise ValueError(f"sites: {', '.join(twice)} is listed twice; names must differ")
        return self

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> Self:
        if not self.heartbeat_seconds < self.round_deadline_seconds:
            raise ValueError("heartbeat_seconds must be less than round_deadline_seconds")
        if not self.heartbeat_seconds < self.silence_deadline_seconds:
            raise ValueError("heartbeat_seconds must be less than silence_deadline_seconds")
        return self


def format_endpoint(address: str, port: int) -> str:
    """Format an address as ``host:port``, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_endpoint(option: str, text: str, example: str) -> tuple[str, int]:
    """Parse ``HOST:PORT`` into the host (a name, or an IP address without brackets) and the port.

    Parameters
    ----------
    option
        Name of the command-line option, for the error.
    text
        Text to parse.
    example
        A valid value, for the error.

    Raises
    ------
    ConfigError
        If the text does not have that form.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        _check_address(host)
        if port.isdecimal() and 1 <= int(port) <= 65535:
            return host, int(port)
    except ValueError:
        pass
    raise ConfigError(f"{option} {text}: write a host and a port, for example {example}")


def parse_listen(option: str, text: str, example: str) -> tuple[str, int]:
    """Parse an address to listen on as ``parse_endpoint`` does; the host must be an IP address.

    Raises
    ------
    ConfigError
        If the text does not have that form.
    """
    host, port = parse_endpoint(option, text, example)
    if not is_ip_address(host):
        raise ConfigError(f"{option} {text}: write an IP address of this machine and a port, for example {example}")
    return host, port


def parse_metrics(text: str) -> tuple[str, int]:
    """Parse ``--metrics``: an address as ``parse_listen`` does, or a port on the loopback interface.

    Raises
    ------
    ConfigError
        If the text does not have that form.
    """
    return parse_listen("--metrics", f"127.0.0.1:{text}" if text.isdecimal() else text, "127.0.0.1:9464")


__all__ = [
    "Address",
    "NetworkConfig",
    "SiteName",
    "format_endpoint",
    "is_ip_address",
    "is_site_name",
    "parse_endpoint",
    "parse_listen",
    "parse_metrics",
]
