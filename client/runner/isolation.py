"""Takes the network away from this process, before it has read anything that could be sent.

A process in a network namespace of its own has no interface but a loopback that is down: it reaches nobody, not even
the courier beside it. Root makes such a namespace directly; anyone else inside a user namespace, where the kernel
allows that. A container that was started without a network is recognised as it is.

Only the standard library is imported here: a namespace is entered before there is a second thread, so before anything
heavy is loaded. ``python isolation.py`` tries it and ends with status 0 if it works; the reason of a failure is on
standard output.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_PR_CAPBSET_DROP, _CAPABILITIES_VERSION = 24, 0x20080522
_CAP_NET_ADMIN, _CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 12, 19, 21
_LONGEST_SECONDS = 20.0
_LOOPBACK = "loopback"
_PLACES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that nobody has (RFC 5737, RFC 3849): whether there is a route to them is asked, nothing is sent."""


@dataclass(frozen=True)
class Isolation:
    """What network a process has.

    Attributes
    ----------
    kind
        ``own`` (it is in a namespace of its own), ``given`` (it was started without a network) or ``none`` (it has the
        machine's network).
    reason
        why it could not be isolated; empty if it is.
    """

    kind: Literal["own", "given", "none"]
    reason: str = ""

    @property
    def is_isolated(self) -> bool:
        """Whether it can reach nobody."""
        return self.kind != "none"

    def __str__(self) -> str:
        if self.kind == "own":
            return "has no network: it is in a network namespace of its own"
        if self.kind == "given":
            return "has no network: it was started without one"
        return f"has the machine's network: {self.reason}"


def isolate() -> Isolation:
    """Takes the network away from this process for good; call it once, before there is a second thread.

    Returns
    -------
    Isolation
        How it ended; if it could not be done, everything is as before.
    """
    if is_without_network():
        return Isolation("given")
    if reason := why_not():
        return Isolation("none", reason)
    # It worked in another process a moment ago, so the steps below do not stop half-way.
    _enter_namespace()
    ways = ways_out()
    return Isolation("none", f"it still reaches {', '.join(ways)}") if ways else Isolation("own")


def can_isolate() -> bool:
    """Whether a runner started from here would have no network; tried in another process."""
    return is_without_network() or not why_not()


def is_without_network() -> bool:
    """Whether this process reaches nothing but its own loopback, as in a container without a network."""
    return not set(ways_out()) - {_LOOPBACK}


def why_not() -> str:
    """Why a process cannot take the network away from itself here; empty if it can."""
    if sys.platform != "linux":
        return "only Linux can take it away"
    try:
        command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it could not be tried ({type(error).__name__})"
    if done.returncode == 0:
        return ""
    lines = done.stdout.splitlines()
    return lines[-1] if lines else f"the attempt ended with status {done.returncode}"


def ways_out() -> list[str]:
    """All by which this process could reach another: interfaces that are up, routes, ``loopback``. Sends nothing."""
    found = [name for name in _interfaces_up() if name != "lo"]
    for family, address in _PLACES:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                found.append(f"a route to {address}")
        except OSError:
            continue
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", 9))
            found.append(_LOOPBACK)
    except OSError:
        pass
    return found


def _interfaces_up() -> list[str]:
    names = [name for _, name in socket.if_nameindex()]
    up = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for name in names:
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode()[:15], 0))
            except OSError:
                up.append(name)  # in doubt it is
                continue
            if struct.unpack("16sH14x", answer)[1] & _IFF_UP:
                up.append(name)
    return up


def _enter_namespace() -> None:
    """Enters a network namespace without interfaces, and gives up what would lead out of it.

    Raises
    ------
    OSError
        the kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if user != 0 or libc.unshare(_CLONE_NEWNET) != 0:
        # Read and write as the same user and group; all others are strangers there, and their files as before.
        _check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    _give_up(libc, (_CAP_NET_ADMIN, _CAP_SYS_PTRACE, _CAP_SYS_ADMIN))


def _give_up(libc: ctypes.CDLL, capabilities: tuple[int, ...]) -> None:
    """Makes sure that neither this process nor a child of it can go back to the machine's network."""
    for capability in capabilities:
        _check(libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
    header, sets = struct.pack("Ii", _CAPABILITIES_VERSION, 0), ctypes.create_string_buffer(24)
    _check(libc.capget(header, sets))
    words = list(struct.unpack("6I", sets.raw))
    for capability in capabilities:
        for kind in range(3):  # effective, permitted, inheritable; the second half is of capabilities from 32 on
            words[kind] &= ~(1 << capability)
    _check(libc.capset(header, struct.pack("6I", *words)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _explain(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the kernel allows this user no network namespace (neither as root nor inside a user namespace)"
    if error.errno == errno.ENOSPC:
        return "there are too many namespaces (user.max_user_namespaces, user.max_net_namespaces)"
    return f"no network namespace could be made ({error.strerror})"


def _try() -> int:
    try:
        _enter_namespace()
    except OSError as error:
        print(_explain(error))
        return 1
    if ways := ways_out():
        print(f"a new network namespace still reaches {', '.join(ways)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_try())
