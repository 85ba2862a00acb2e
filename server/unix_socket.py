"""A socket in the file system between SuperLink and a proxy on the same machine.

Over the loopback interface every piece of a model is encrypted and decrypted once more, for whoever is first to take
the port could otherwise pose as SuperLink. A socket in a folder of its own cannot be taken by anybody else.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "FEDVOX_SUPERLINK_SOCKET"
"""Environment variable: the path on which SuperLink listens besides its port."""


@contextmanager
def socket_path() -> Iterator[Path]:
    """A path for the socket, in a new folder that nobody else may write to.

    Not in the run folder: a socket's path may not be longer than 100 characters. The proxy's worker of a server that
    runs as root has no rights; then everybody on the machine may connect, as to a port of the loopback interface.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedvox-"))
    try:
        if os.geteuid() == 0:
            folder.chmod(0o711)
        yield folder / "superlink"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listen_also_on(path: Path, server: Any) -> None:
    """Lets uvicorn serve a socket, without TLS, besides the port that it was told.

    Args:
        path: of the socket; one that is left there is replaced.
        server: ``uvicorn.Server``.
    """
    startup = server.startup

    async def start_both(self: Any, sockets: Any = None) -> None:
        await startup(self, sockets)
        if self.should_exit:
            return

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = self.config.http_protocol_class(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        listener = await asyncio.get_running_loop().create_unix_server(protocol, path)
        path.chmod(0o666 if os.geteuid() == 0 else 0o600)
        self.servers.append(listener)

    server.startup = start_both
