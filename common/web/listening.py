"""Where a page is served, and the options that say so."""

from __future__ import annotations

import argparse
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Listening:
    """An IP address, a port (0 for any), and for all but loopback, TLS files; and a file of an OpenID provider.

    Raises
    ------
    ConfigError
        Others could read along.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    provider: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--tls-cert and --tls-key: give both or none")
        if self.certificate is None and not ipaddress.ip_address(self.host).is_loopback:
            # Late, here and below: every command reads these options, and few start a page.
            from common.config.network import format_endpoint

            raise ConfigError(
                f"{format_endpoint(self.host, self.port)}: others could read along; give --tls-cert and --tls-key, "
                "or listen on 127.0.0.1 (reach it from elsewhere through ssh -L)"
            )


def add_tls_options(command: argparse.ArgumentParser) -> None:
    """Add ``--tls-cert``, ``--tls-key`` and ``--oidc``."""
    command.add_argument("--tls-cert", type=Path, metavar="FILE", help="the page's certificate, for other machines")
    command.add_argument("--tls-key", type=Path, metavar="FILE", help="the key of --tls-cert")
    command.add_argument("--oidc", type=Path, metavar="FILE", help="sign in through an OpenID Connect provider")


def listening_from(options: argparse.Namespace, option: str, text: str | None, port: int) -> Listening:
    """Return where to listen.

    Parameters
    ----------
    option, text
        The option that names the address, and its value; None for ``port`` on loopback.

    Raises
    ------
    ConfigError
        It has another form, or needs TLS files.
    """
    from common.config.network import parse_listen

    host, number = (HOST, port) if text is None else parse_listen(option, text, f"{HOST}:{port}")
    return Listening(host, number, options.tls_cert, options.tls_key, options.oidc)


def is_here(address: str) -> bool:
    """Return whether an IP address is this machine's for itself."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
