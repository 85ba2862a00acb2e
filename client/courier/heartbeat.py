"""Heartbeats: to the server app with the site's tasks and progress, and to Flower to keep the node online."""

from __future__ import annotations

import threading
from collections.abc import Callable

from client.courier.connection import Access
from client.courier.errors import LineError, RefusedError
from client.courier.retry import Backoff, Complaint
from client.shared_folder import SharedFolder
from common.protocol.codec import MAX_TASKS, pack

MOST_SECONDS = 5.0
"""Longest interval between two heartbeats, whatever the federation sets."""


class Heartbeats:
    """Sends ``POST /heartbeat`` at intervals, and at once when the held tasks change.

    Parameters
    ----------
    access
        Access to the gateway.
    shared
        Folder in which the runner reports its progress.
    held
        Returns the held tasks, oldest first.
    seconds
        The interval.
    stop
        Set when the courier stops.
    """

    def __init__(
        self,
        access: Access,
        shared: SharedFolder,
        held: Callable[[], tuple[str, ...]],
        seconds: float,
        stop: threading.Event,
    ) -> None:
        self._access = access
        self._shared = shared
        self._held = held
        self._seconds = min(seconds, MOST_SECONDS)
        self._stop = stop
        self._changed = threading.Event()

    def hurry(self) -> None:
        """Send a heartbeat at once, because the held tasks changed. Thread-safe."""
        self._changed.set()

    def run(self) -> None:
        """Send heartbeats until the courier stops."""
        complaint, backoff = Complaint("heartbeat"), Backoff()
        with self._access.connection() as connection:
            while not self._stop.is_set():
                self._changed.clear()
                body = pack(self._shared.heartbeat(self._held()[:MAX_TASKS])).encode()
                try:
                    response = connection.request("POST", "/heartbeat", {"content-type": "application/json"}, body)
                    connection.check(response, "heartbeat", 200, 204)
                    response.read()
                except (LineError, RefusedError) as error:
                    connection.close()
                    complaint.say(error)
                    self._stop.wait(backoff.pause())
                else:
                    complaint.over()
                    backoff.reset()
                    self._changed.wait(self._seconds)


def keep_node_online(send: Callable[[], None], seconds: float, stop: threading.Event) -> None:
    """Send Flower's own heartbeat until the courier stops."""
    complaint, backoff = Complaint("Flower's heartbeat"), Backoff()
    while not stop.wait(seconds):
        while not stop.is_set():
            try:
                send()
            except (LineError, RefusedError) as error:
                complaint.say(error)
                stop.wait(backoff.pause())
            else:
                complaint.over()
                backoff.reset()
                break
