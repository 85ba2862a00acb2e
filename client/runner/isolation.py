"""Cuts this process off from the network, before it has read anything that could be sent.

A process in its own network namespace has only a loopback interface that is down: it can reach nothing, not even the
courier on the same machine. Root creates such a namespace directly; other users create it inside a user namespace,
where the kernel allows that. A container that was started without a network counts as isolated.

Only the standard library is imported here: the namespace must be entered before a second thread exists, and so before
anything heavy is loaded. ``python isolation.py`` tries it and exits with status 0 if it works; the reason for a failure
goes to standard output.
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
"""Addresses reserved for documentation (RFC 5737, RFC 3849): only routes to them are looked up, nothing is sent."""


@dataclass(frozen=True)
class Isolation:
    """The network access of a process.

    Attributes
    ----------
    kind
        ``own`` (in its own network namespace), ``given`` (started without a network) or ``none`` (not isolated: it has
        the machine's network).
    reason
        Why it could not be isolated; empty if it is.
    """

    kind: Literal["own", "given", "none"]
    reason: str = ""

    @property
    def is_isolated(self) -> bool:
        """Whether the process has no network."""
        return self.kind != "none"

    def __str__(self) -> str:
        if self.kind == "own":
            return "has no network: it is in a network namespace of its own"
        if self.kind == "given":
            return "has no network: it was started without one"
        return f"has the machine's network: {self.reason}"


def isolate() -> Isolation:
    """Cut this process off from the network for good; call once, before a second thread exists.

    Returns
    -------
    Isolation
        The outcome. If isolation turns out to be impossible in a trial process, this process is unchanged.
    """
    if is_without_network():
        return Isolation("given")
    if reason := why_not():
        return Isolation("none", reason)
    # A trial process has just succeeded, so the steps below should not stop halfway.
    _enter_namespace()
    ways = ways_out()
    return Isolation("none", f"it still reaches {', '.join(ways)}") if ways else Isolation("own")


def can_isolate() -> bool:
    """Return whether a runner started from here would have no network; tried in another process."""
    return is_without_network() or not why_not()


def is_without_network() -> bool:
    """Return whether this process reaches at most its own loopback, as in a container without a network."""
    return not set(ways_out()) - {_LOOPBACK}


def why_not() -> str:
    """Return why a process cannot isolate itself here; empty if it can."""
    if sys.platform != "linux":
        return "isolation needs Linux"
    try:
        command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"isolation could not be tried ({type(error).__name__})"
    if done.returncode == 0:
        return ""
    lines = done.stdout.splitlines()
    return lines[-1] if lines else f"the attempt ended with status {done.returncode}"


def ways_out() -> list[str]:
    """List the ways to reach another process: interfaces that are up, routes, ``loopback``. Sends nothing."""
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
                up.append(name)  # assume that it is up
                continue
            if struct.unpack("16sH14x", answer)[1] & _IFF_UP:
                up.append(name)
    return up


def _enter_namespace() -> None:
    """Enter a network namespace without interfaces, and drop the capabilities that could leave it.

    Raises
    ------
    OSError
        The kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if user != 0 or libc.unshare(_CLONE_NEWNET) != 0:
        # Map only this user and group, to themselves: access to files stays as it was.
        _check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    _give_up(libc, (_CAP_NET_ADMIN, _CAP_SYS_PTRACE, _CAP_SYS_ADMIN))


def _give_up(libc: ctypes.CDLL, capabilities: tuple[int, ...]) -> None:
    """Ensure that neither this process nor its children can return to the machine's network."""
    for capability in capabilities:
        _check(libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
    header, sets = struct.pack("Ii", _CAPABILITIES_VERSION, 0), ctypes.create_string_buffer(24)
    _check(libc.capget(header, sets))
    words = list(struct.unpack("6I", sets.raw))
    for capability in capabilities:
        for kind in range(3):  # effective, permitted, inheritable; the second half holds capabilities from 32 on
            words[kind] &= ~(1 << capability)
    _check(libc.capset(header, struct.pack("6I", *words)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _explain(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the kernel does not let this user create a network namespace, as root or inside a user namespace"
    if error.errno == errno.ENOSPC:
        return "there are too many namespaces (user.max_user_namespaces, user.max_net_namespaces)"
    return f"a network namespace could not be created ({error.strerror})"


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
