"""Doing things again until they work, without pressing the server."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from client.courier.errors import LineError, RefusedError, StoppedError
from common.audit import AuditError
from common.errors import FedvoxError, OutputError

SHORTEST_SECONDS, LONGEST_SECONDS = 0.2, 5.0
REFUSAL_PATIENCE_SECONDS = 600.0
SAY_AGAIN_SECONDS = 60.0
log = logging.getLogger("fedvox.courier")
T = TypeVar("T")


class Backoff:
    """Pauses that double, each a little longer or shorter so that many sites do not come at the same moment."""

    def __init__(self) -> None:
        self._next = SHORTEST_SECONDS

    def pause(self) -> float:
        """Seconds to wait now."""
        seconds, self._next = self._next, min(self._next * 2, LONGEST_SECONDS)
        return seconds * random.uniform(0.8, 1.2)  # noqa: S311 -- no secret

    def reset(self) -> None:
        """Begins anew with the shortest."""
        self._next = SHORTEST_SECONDS


class Complaint:
    """Says what does not work: at once when it is new, and now and then while it lasts."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._text = ""
        self._said = 0.0

    def say(self, error: FedvoxError) -> None:
        """It did not work."""
        now = time.monotonic()
        if str(error) != self._text or now - self._said >= SAY_AGAIN_SECONDS:
            self._text, self._said = str(error), now
            log.warning("%s: %s; trying again", self._what, error)

    def over(self) -> None:
        """It works."""
        if self._text:
            log.info("%s: works again", self._what)
        self._text = ""


class Retries:
    """Repeats what may fail: for ever while the line or the disk is at fault, for a while if the server says "not
    now".

    Parameters
    ----------
    stop
        set when the courier ends.
    patience
        seconds for which refusals that may pass are borne.
    """

    def __init__(self, stop: threading.Event, patience: float = REFUSAL_PATIENCE_SECONDS) -> None:
        self._stop = stop
        self._patience = patience

    def until_done(self, what: str, action: Callable[[], T]) -> T:
        """What ``action`` returns, once it does; every attempt must be safe to repeat.

        Parameters
        ----------
        what
            for the log.

        Raises
        ------
        RefusedError
            the server refuses for good, or for too long.
        StoppedError
            the courier ends.
        """
        backoff, complaint, refused_since = Backoff(), Complaint(what), None
        while True:
            try:
                result = action()
            except RefusedError as error:
                now = time.monotonic()
                refused_since = refused_since or now
                if error.is_final or now - refused_since > self._patience:
                    raise
                complaint.say(error)
            except (LineError, OutputError, AuditError) as error:
                refused_since = None
                if isinstance(error, LineError) and error.progressed:
                    backoff.reset()
                complaint.say(error)
            else:
                complaint.over()
                return result
            self.pause(backoff.pause())

    def pause(self, seconds: float) -> None:
        """Waits.

        Raises
        ------
        StoppedError
            the courier ends.
        """
        if self._stop.wait(seconds):
            raise StoppedError
