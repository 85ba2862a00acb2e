"""Rate limit, and hours for large files, as the hospital's ``site.yaml`` sets them (``SiteNetwork``)."""

from __future__ import annotations

import logging
import threading
import time as time_module
from collections.abc import Callable
from datetime import datetime, time, timedelta

from client.consent.site_config import SiteNetwork
from client.courier.errors import StoppedError

WINDOW_BYTES = 64 * 2**20
"""Bytes of a file per request: the gateway's maximum."""
LARGE_FILE_BYTES = 2**20
"""Larger files wait for their hours."""
_PORTION_BYTES = 256 * 1024
_SMALLEST_WINDOW_BYTES = 256 * 1024
_LONGEST_WINDOW_SECONDS = 20.0
_LONGEST_NAP_SECONDS = 30.0
log = logging.getLogger("fedvox.courier")


class TokenBucket:
    """Limits the rate of all threads together.

    Parameters
    ----------
    rate
        Bytes per second.
    clock
        Returns the time in seconds.
    wait
        Sleeps for a number of seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float], wait: Callable[[float], None]) -> None:
        self._rate = rate
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> None:
        """Wait until the rate allows ``count`` more bytes."""
        with self._lock:
            now = self._clock()
            # Unused capacity expires, so there are no bursts above the rate.
            self._free_at = max(self._free_at, now) + count / self._rate
            seconds = self._free_at - now
        if seconds > 0:
            self._wait(seconds)


class Pace:
    """Rate limit and hours together.

    Parameters
    ----------
    network
        What the hospital allows.
    stop
        Set when the courier stops.
    clock
        Returns the time in seconds, for the rate.
    now
        Returns this machine's local time, for the hours.
    wait
        Sleeps, and returns whether the courier stops; None waits for ``stop``.
    window
        Maximum bytes of a file per request.
    """

    def __init__(
        self,
        network: SiteNetwork,
        stop: threading.Event,
        clock: Callable[[], float] = time_module.monotonic,
        now: Callable[[], datetime] = datetime.now,
        wait: Callable[[float], bool] | None = None,
        window: int = WINDOW_BYTES,
    ) -> None:
        self._window = window
        self._hours = network.hours
        self._now = now
        self._wait = wait or stop.wait
        self._rate = None if network.max_megabits is None else network.max_megabits * 1e6 / 8
        self._bucket = None if self._rate is None else TokenBucket(self._rate, clock, self._sleep)

    @property
    def has_hours(self) -> bool:
        """Whether large files may have to wait."""
        return self._hours is not None

    @property
    def window(self) -> int:
        """Bytes per request: fewer at a low rate, so that no request takes long."""
        if self._rate is None:
            return self._window
        return int(min(self._window, max(_SMALLEST_WINDOW_BYTES, self._rate * _LONGEST_WINDOW_SECONDS)))

    @property
    def portion(self) -> int:
        """Bytes to move between two calls of ``take``."""
        return _PORTION_BYTES if self._rate is None else int(min(_PORTION_BYTES, max(16 * 1024, self._rate / 10)))

    def take(self, count: int) -> None:
        """Wait until the rate allows ``count`` more bytes.

        Raises
        ------
        StoppedError
            If the courier stops.
        """
        if self._bucket is not None:
            self._bucket.take(count)

    def wait_for_hours(self, size: int, what: str) -> None:
        """Wait until a file of this size may be transferred; ``what`` labels it in the log.

        Raises
        ------
        StoppedError
            If the courier stops.
        """
        if self._hours is None or size <= LARGE_FILE_BYTES:
            return
        has_said = False
        while (seconds := seconds_until_open(self._now(), *self._hours)) > 0:
            if not has_said:
                has_said = True
                log.info("%s: waits until %s (large_files_between in site.yaml)", what, f"{self._hours[0]:%H:%M}")
            # In short naps: the machine may sleep, or its clock may be changed.
            self._sleep(min(seconds, _LONGEST_NAP_SECONDS))

    def _sleep(self, seconds: float) -> None:
        if self._wait(seconds):
            raise StoppedError


def seconds_until_open(now: datetime, start: time, end: time) -> float:
    """Return the seconds until the hours from ``start`` to ``end`` begin; 0 within them.

    ``now`` is local time without a zone. ``end`` may lie on the next day.
    """
    current = now.time()
    is_open = start <= current < end if start < end else current >= start or current < end
    if is_open:
        return 0.0
    opening = datetime.combine(now.date(), start)
    if opening <= now:
        opening += timedelta(days=1)
    return (opening - now).total_seconds()
