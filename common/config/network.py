"""Where a federation's server is, who takes part, and the kit that says so at each end.

A kit is a folder that ``fedvox-server provision`` writes, one for the server and one for each site. ``kit.yaml`` in it
says whose it is; the other files are keys, certificates, and the federation itself.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from common.config.kit import KIT_FILE, Kit, read_kit
from common.errors import ConfigError
from common.plan.base import Frozen

_HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def is_ip_address(address: str) -> bool:
    """Whether an address is a number (IPv4 or IPv6) rather than a name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def _check_address(address: str) -> str:
    labels = address.split(".")
    is_name = len(address) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels)
    # A name whose last label is a number is a mistyped IP address: no such names exist.
    if is_ip_address(address) or (is_name and not labels[-1].isdecimal()):
        return address
    raise ValueError("must be a host name or an IP address, without https:// and without a port")


Address = Annotated[str, AfterValidator(_check_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
FederationName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


_SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def is_site_name(name: str) -> bool:
    """Whether a site may have this name; such a name is safe as a file's."""
    return _SITE_NAME.fullmatch(name) is not None


class NetworkConfig(Frozen):
    """The ``network`` part of a federation file: what a real federation needs beyond a simulation.

    Attributes
    ----------
    address, port
        where sites reach the server.
    other_addresses
        further names and addresses that the server's certificate is to be valid for.
    sites
        names of the hospitals; each gets a kit.
    certificate_days
        how long the certificates of server and sites are valid.
    validation_fraction
        share of a site's patients that are not trained on, but score every round's model.
    round_deadline_seconds
        how long a round waits for a site; starts anew whenever the site shows progress.
    heartbeat_seconds
        how often a site that trains shows its progress.
    silence_deadline_seconds
        how long a round waits for any sign of life of a site that is online; it must be enough to fetch the model over
        the slowest line.
    """

    address: Address
    port: Port = 9443
    other_addresses: tuple[Address, ...] = ()
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    certificate_days: Annotated[int, Field(ge=1, le=3650)] = 365
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    round_deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 30.0
    silence_deadline_seconds: Annotated[float, Field(gt=0)] = 600.0

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = sorted({name for name in self.sites if self.sites.count(name) > 1})
        if twice:
            raise ValueError(f"sites: {', '.join(twice)} stands twice; names must differ")
        return self

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> Self:
        if not self.heartbeat_seconds < self.round_deadline_seconds:
            raise ValueError("heartbeat_seconds must be less than round_deadline_seconds")
        if not self.heartbeat_seconds < self.silence_deadline_seconds:
            raise ValueError("heartbeat_seconds must be less than silence_deadline_seconds")
        return self


def format_endpoint(address: str, port: int) -> str:
    """``host:port``; an IPv6 address stands in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_endpoint(option: str, text: str, example: str) -> tuple[str, int]:
    """Host (a name, or an IP address without brackets) and port of ``HOST:PORT``.

    Parameters
    ----------
    option
        on the command line, for the error.
    text
        to read.
    example
        of a good value, for the error.

    Raises
    ------
    ConfigError
        it is not of that form.
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
    """As ``parse_endpoint``, for a place to listen: the host must be an IP address.

    Raises
    ------
    ConfigError
        it is not of that form.
    """
    host, port = parse_endpoint(option, text, example)
    if not is_ip_address(host):
        raise ConfigError(f"{option} {text}: write an IP address of this machine and a port, for example {example}")
    return host, port


__all__ = [
    "KIT_FILE",
    "Address",
    "Kit",
    "NetworkConfig",
    "SiteName",
    "format_endpoint",
    "is_ip_address",
    "is_site_name",
    "parse_endpoint",
    "parse_listen",
    "read_kit",
]
