"""Why something did not work towards the server, by what can be done about it."""

from __future__ import annotations

from common.errors import FedvoxError
from common.protocol.messages import Failure

REFUSED_FOR_NOW = frozenset({401, 408, 425, 429})
"""Statuses that time may heal: a clock that is off, a key that is not let in yet, too many requests."""


class StoppedError(Exception):
    """The courier ends; whatever is under way stays as it is, and goes on at the next start."""


class LineError(FedvoxError):
    """No answer, half of one, or one that says "later": worth another attempt.

    Attributes
    ----------
    progressed
        whether something got through before it failed.
    """

    progressed = False


class RefusedError(FedvoxError):
    """The server understood, and said no.

    Attributes
    ----------
    status
        of HTTP, 400 to 499.
    """

    def __init__(self, what: str, status: int, word: str = "") -> None:
        self.status = status
        super().__init__(f"{what}: the server answers {status}{f' ({word})' if word else ''}{_advice(word)}")

    @property
    def is_final(self) -> bool:
        """Whether asking again is of no use."""
        return self.status not in REFUSED_FOR_NOW


class GivenUpError(FedvoxError):
    """A task that cannot be answered as it was meant.

    Attributes
    ----------
    failure
        what the server is to hear.
    """

    def __init__(self, problem: str, failure: Failure) -> None:
        self.failure = failure
        super().__init__(problem)


def _advice(word: str) -> str:
    advice = {
        "clock": "; set this machine's clock by a time server",
        "unknown-site": "; ask the coordinator whether this site's certificate is still let in",
    }
    return advice.get(word, "")
