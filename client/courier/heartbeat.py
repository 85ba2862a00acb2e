"""Signs of life: to the server app what the site holds and works on, to Flower that the node is there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from client.courier.connection import Access
from client.courier.errors import LineError, RefusedError
from client.courier.retry import Backoff, Complaint
from client.shared_folder import SharedFolder
from common.protocol.codec import MAX_TASKS, pack

MOST_SECONDS = 5.0
"""Between two heartbeats, whatever the federation says."""


class Heartbeats:
    """Sends ``POST /heartbeat`` at intervals, and at once when other tasks are held.

    Parameters
    ----------
    access
        to the gateway.
    shared
        where the runner says what it works on.
    held
        the tasks that are held, oldest first.
    seconds
        the interval.
    stop
        set when the courier ends.
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
        """Other tasks are held now; may be called by any thread."""
        self._changed.set()

    def run(self) -> None:
        """Until the courier ends."""
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
    """Sends Flower's own heartbeat until the courier ends."""
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
