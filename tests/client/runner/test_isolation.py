"""The process that sees the scans reaches nobody: asked from inside, with servers that would answer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.runner import isolation

MODULE = Path(isolation.__file__)
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin")
NOBODY = 65534

PROBE = """
import os, runpy, socket, sys, threading
module = runpy.run_path(sys.argv[1])
print(module["isolate"]())
print("ways out:", module["ways_out"]())
for address in sys.argv[2:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5)
        print("reached", address)
    except OSError as error:
        print("not reached:", error.strerror)
import ctypes
try:
    outside = os.open("/proc/1/ns/net", os.O_RDONLY)
    print("back:", ctypes.CDLL(None).setns(outside, 0))
except OSError as error:
    print("no way back:", error.strerror)
with open(os.environ.get("READ", sys.argv[1])) as file:
    print("reads files:", bool(file.read()))
print(module["isolate"]())
"""


def refusal() -> str:
    return "" if isolation.can_isolate() else isolation.why_not()


needs_namespaces = pytest.mark.skipif(bool(refusal()), reason=f"this kernel: {refusal()}")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make the places that this is tested in")


@pytest.fixture
def servers() -> Iterator[list[str]]:
    """Addresses that answer: on the loopback, and on this machine's other addresses."""
    listener = socket.create_server(("", 0))
    port = listener.getsockname()[1]

    def accept() -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    addresses = [f"127.0.0.1:{port}"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            addresses.append(f"{probe.getsockname()[0]}:{port}")
        except OSError:
            pass  # a machine without a network
    for address in addresses:
        host, _, number = address.rpartition(":")
        socket.create_connection((host, int(number)), timeout=5).close()
    yield addresses
    listener.close()


def run_probe(servers: list[str], *within: str, python: str = sys.executable, user: int | None = None) -> list[str]:
    command = [*within, python, "-I", "-c", PROBE, str(MODULE), *servers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, user=user, group=user, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@needs_namespaces
def test_from_inside_nobody_is_reached_and_there_is_no_way_back(servers: list[str]) -> None:
    lines = run_probe(servers)
    assert lines[:2] == ["has no network: it is in a network namespace of its own", "ways out: []"]
    assert lines[2 : 2 + len(servers)] == ["not reached: Network is unreachable"] * len(servers)
    assert lines[-3] == "back: -1" or lines[-3].startswith("no way back")
    assert lines[-2:] == ["reads files: True", "has no network: it was started without one"]


@needs_root
def test_an_ordinary_user_is_isolated_as_well(servers: list[str]) -> None:
    if SYSTEM_PYTHON is None:
        pytest.skip("no Python that an ordinary user may run")
    lines = run_probe(servers, python=SYSTEM_PYTHON, user=NOBODY)
    if "machine's network" in lines[0]:
        pytest.skip(lines[0])
    assert lines[1] == "ways out: []"
    assert not [line for line in lines if line.startswith("reached")]
    assert lines[-2] == "reads files: True"


@needs_root
def test_where_the_kernel_refuses_all_is_as_before_and_the_reason_is_told(servers: list[str]) -> None:
    forbid = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    lines = run_probe(servers, "unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    assert lines[0] == (
        "has the machine's network: there are too many namespaces (user.max_user_namespaces, user.max_net_namespaces)"
    )
    assert lines[2 : 2 + len(servers)] == [f"reached {address}" for address in servers]


@needs_root
def test_a_container_without_a_network_is_recognised() -> None:
    up = 'ip link set lo up && exec "$@"'
    lines = run_probe(["127.0.0.1:9"], "unshare", "--net", "sh", "-c", up, "sh")
    assert lines[:3] == [
        "has no network: it was started without one",
        "ways out: ['loopback']",
        "not reached: Connection refused",
    ]


def test_asking_changes_nothing(servers: list[str]) -> None:
    before = isolation.ways_out()
    isolation.can_isolate()
    assert isolation.ways_out() == before != []
