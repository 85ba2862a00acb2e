"""Where the gateway listens."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from common.config.kit import Kit
from common.config.network import format_endpoint
from common.errors import FedvoxError


@dataclass(frozen=True)
class Listen:
    """A host and port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_endpoint(self.host, self.port)


def default_listen(kit: Kit) -> Listen:
    """Return where the gateway listens by default."""
    if kit.address in ("localhost", "127.0.0.1"):
        return Listen("127.0.0.1", kit.port)
    if kit.address == "::1":
        return Listen("::1", kit.port)
    return Listen("::" if ":" in kit.address else "0.0.0.0", kit.port)  # noqa: S104 -- meant to be open


def check_port(listen: Listen) -> None:
    """Check that the gateway can listen.

    Raises
    ------
    FedvoxError
        The port is in use, the address is not this machine's, or permission is denied.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            raise FedvoxError(
                f"cannot listen on {listen}: {error.strerror}; stop the program that uses it, or change --listen"
            ) from None
