"""Retries with backoff."""

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
    """Exponential backoff with jitter, so that many sites do not retry at the same moment."""

    def __init__(self) -> None:
        self._next = SHORTEST_SECONDS

    def pause(self) -> float:
        """Return the seconds to wait now."""
        seconds, self._next = self._next, min(self._next * 2, LONGEST_SECONDS)
        return seconds * random.uniform(0.8, 1.2)  # noqa: S311 -- no secret

    def reset(self) -> None:
        """Return to the shortest pause."""
        self._next = SHORTEST_SECONDS


class Complaint:
    """Logs a failure: at once when it is new, and every ``SAY_AGAIN_SECONDS`` while it lasts."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._text = ""
        self._said = 0.0

    def say(self, error: FedvoxError) -> None:
        """Report a failure."""
        now = time.monotonic()
        if str(error) != self._text or now - self._said >= SAY_AGAIN_SECONDS:
            self._text, self._said = str(error), now
            log.warning("%s: %s; trying again", self._what, error)

    def over(self) -> None:
        """Report success."""
        if self._text:
            log.info("%s: works again", self._what)
        self._text = ""


class Retries:
    """Retries network and disk errors for ever, and temporary refusals for a limited time.

    Parameters
    ----------
    stop
        Set when the courier stops.
    patience
        Seconds for which temporary refusals are retried.
    """

    def __init__(self, stop: threading.Event, patience: float = REFUSAL_PATIENCE_SECONDS) -> None:
        self._stop = stop
        self._patience = patience

    def until_done(self, what: str, action: Callable[[], T]) -> T:
        """Retry ``action`` until it succeeds, and return its result; it must be safe to repeat.

        Parameters
        ----------
        what
            Label for the log.

        Raises
        ------
        RefusedError
            If the server refuses for good, or for too long.
        StoppedError
            If the courier stops.
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
        """Wait for ``seconds``.

        Raises
        ------
        StoppedError
            If the courier stops.
        """
        if self._stop.wait(seconds):
            raise StoppedError
