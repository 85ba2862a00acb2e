"""The proxy by itself: in a container of its own, which sites reach, away from everything that has state."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from common.network_config import read_kit
from server.network_setup import check_certificate, check_port
from server.proxy import Listen, find_nginx, write_proxy_configuration

HANDSHAKE_SECONDS = 5.0
_STANDARD_OUTPUT = Path("/dev/stdout")


def run_proxy(kit: Path, listen: Listen, superlink: str, say: Callable[[str], None]) -> NoReturn:
    """Becomes nginx, which says on standard output what it refuses.

    Args:
        kit: the server's kit; of it ``kit.yaml``, ``ca.crt``, ``server.crt`` and ``server.key`` are needed.
        listen: where sites reach the proxy.
        superlink: host:port of SuperLink.
        say: shows a line.

    Raises:
        FedvoxError: nginx is missing, the certificate cannot be used, or somebody else listens there.
    """
    read_kit(kit, "server")
    nginx = find_nginx()
    check_certificate(kit / "server.crt", say)
    check_port(listen)
    folder = Path(tempfile.mkdtemp(prefix="fedvox-proxy-"))
    folder.chmod(0o711)  # nginx's worker, which may have another account, passes through
    configuration = write_proxy_configuration(folder, kit, listen, superlink, _STANDARD_OUTPUT)
    say(f"listening on {listen} for sites; SuperLink is {superlink}")
    os.execv(nginx, [nginx, "-c", str(configuration), "-p", str(folder)])  # noqa: S606 -- no shell is wanted


def shakes_hands(kit: Path, host: str, port: int) -> bool:
    """Whether a proxy with the certificate of this kit's federation answers over TLS.

    Args:
        kit: for the certificate that the proxy's must be signed by.
        host: where it listens, on this machine.
        port: of the proxy.
    """
    context = ssl.create_default_context(cafile=str(kit / "ca.crt"))
    try:
        with (
            socket.create_connection((host, port), timeout=HANDSHAKE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="localhost"),
        ):
            return True
    except OSError:
        return False
