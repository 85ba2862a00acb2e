"""Networks and disks that a test can make bad."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.tools import cannot_run, program

SERVER_ADDRESS, SITE_ADDRESS = "10.77.0.1", "10.77.0.2"


def root_only(*programs: str) -> None:
    """Skips a test that this machine, or this account, cannot run."""
    if os.getuid() != 0:
        cannot_run("needs root: it makes networks and mounts disks")
    for name in programs:
        program(name, name)


class Line:
    """Two network namespaces with a line between them.

    server, site: what to put before a command that is to run at one end of the line.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self._names = {end: f"fedvox-{mark}-{end}" for end in ("server", "site")}
        self.server, self.site = (("ip", "netns", "exec", name) for name in self._names.values())
        self._link: subprocess.Popen[str] | None = None

    def open(self, *, delay: float = 0.0, loss: float = 0.0, rate: float = 0.0) -> None:
        """Makes the line; seconds one way, share of packets, bits per second."""
        for name in self._names.values():
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        command = [sys.executable, "-m", "tests.deploy.faults.link"]
        command += [self._names["server"], SERVER_ADDRESS, self._names["site"], SITE_ADDRESS]
        command += ["--delay", str(delay), "--loss", str(loss), "--rate", str(rate)]
        self._link = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._link.stdout is not None
        assert self._link.stdout.readline() == "up\n"

    def close(self) -> None:
        """Ends the line, and removes the namespaces."""
        if self._link is not None:
            self._link.kill()
            self._link.communicate()
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def line() -> Iterator[Line]:
    """A line that is yet to be opened."""
    root_only("ip")
    if not Path("/dev/net/tun").exists():
        cannot_run("this kernel has no TUN devices")
    made = Line()
    try:
        yield made
    finally:
        made.close()


class Disk:
    """A small disk of its own, in memory.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g,mode=700", "tmpfs", str(path)], check=True)

    def fill(self) -> None:
        """Leaves no room, whatever lies on it."""
        used = os.statvfs(self.path)
        self._resize((used.f_blocks - used.f_bfree) * used.f_frsize)

    def free(self) -> None:
        """Makes room."""
        self._resize(2 * 2**30)

    def shrink(self, size: int) -> None:
        """Leaves so many bytes at all."""
        self._resize(size)

    def close(self) -> None:
        """Takes it away."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=False)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)


@pytest.fixture
def disk() -> Iterator[Callable[[Path], Disk]]:
    """Mounts a disk at a folder."""
    root_only("mount", "umount")
    with contextlib.ExitStack() as stack:

        def mount(path: Path) -> Disk:
            made = Disk(path)
            stack.callback(made.close)
            return made

        yield mount
