"""A line between two network namespaces, as long, lossy and narrow as it is told to be.

``python -m tests.deploy.faults.link A ADDRESS_A B ADDRESS_B`` makes a device ``wan0`` in each namespace and carries IP
packets between them until it is ended; the devices go with it. Delay, loss and rate hold for each direction by itself.
For kernels without netem; needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

DEVICE = "wan0"
PACKET_BYTES = 1500
LONGEST_QUEUE = 2000
"""Packets; what comes on top is lost, as in a router."""
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001


@dataclass
class Direction:
    """What is on its way to one end.

    sink: device that gets it. bytes_per_second: 0 is as fast as this machine can.
    """

    sink: int
    delay: float
    loss: float
    bytes_per_second: float
    free_at: float = 0.0
    queue: list[tuple[float, int, bytes]] = field(default_factory=list)
    count: itertools.count[int] = field(default_factory=itertools.count)

    def take(self, packet: bytes, now: float) -> None:
        """Puts a packet on its way, or loses it."""
        if random.random() < self.loss or len(self.queue) >= LONGEST_QUEUE:
            return
        on_the_line = len(packet) / self.bytes_per_second if self.bytes_per_second else 0.0
        self.free_at = max(self.free_at, now) + on_the_line
        heapq.heappush(self.queue, (self.free_at + self.delay, next(self.count), packet))

    def deliver(self, now: float) -> None:
        """Hands over what has arrived."""
        while self.queue and self.queue[0][0] <= now:
            with contextlib.suppress(OSError):  # nobody is there any more
                os.write(self.sink, heapq.heappop(self.queue)[2])


def open_device(namespace: str, own: str, other: str) -> int:
    """Makes the device in a namespace, with both ends' addresses; its file descriptor."""
    with Path("/run/netns", namespace).open() as place:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(place.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN_NO_PI))
    for command in (
        ["address", "add", own, "peer", other, "dev", DEVICE],
        ["link", "set", DEVICE, "up", "mtu", str(PACKET_BYTES)],
    ):
        subprocess.run(["ip", *command], check=True)
    return device


def carry(ends: tuple[int, int], delay: float, loss: float, bytes_per_second: float) -> None:
    """Carries packets between two devices for ever."""
    first, second = ends
    to = {source: Direction(sink, delay, loss, bytes_per_second) for source, sink in ((first, second), (second, first))}
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while True:
            due = [direction.queue[0][0] for direction in to.values() if direction.queue]
            pause = max(0.0, min(due) - time.monotonic()) if due else None
            for key, _ in selector.select(pause):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        to[key.fd].take(os.read(key.fd, 2 * PACKET_BYTES), time.monotonic())
            for direction in to.values():
                direction.deliver(time.monotonic())


def main() -> None:
    """Makes the line, says ``up``, and carries."""
    parser = argparse.ArgumentParser()
    for name in ("first", "first_address", "second", "second_address"):
        parser.add_argument(name)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, one way")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets")
    parser.add_argument("--rate", type=float, default=0.0, help="bits per second")
    options = parser.parse_args()
    first, second = options.first_address, options.second_address
    ends = open_device(options.first, first, second), open_device(options.second, second, first)
    print("up", flush=True)
    carry(ends, options.delay, options.loss, options.rate / 8)


if __name__ == "__main__":
    main()
