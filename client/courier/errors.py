"""Errors in exchanges with the server, grouped by what can be done about them."""

from __future__ import annotations

from common.errors import FedvoxError
from common.protocol.messages import Failure

REFUSED_FOR_NOW = frozenset({401, 408, 425, 429})
"""Temporary refusals: the clock is off, the key or message is not available yet, too many requests."""


class StoppedError(Exception):
    """The courier is stopping; unfinished work stays as it is and resumes at the next start."""


class LineError(FedvoxError):
    """No response, a partial one, or one that says "later": worth another attempt.

    Attributes
    ----------
    progressed
        Whether any data got through before the failure.
    """

    progressed = False


class RefusedError(FedvoxError):
    """The server understood the request and refused it.

    Attributes
    ----------
    status
        HTTP status, 400 to 499.
    """

    def __init__(self, what: str, status: int, word: str = "") -> None:
        self.status = status
        super().__init__(f"{what}: the server answers {status}{f' ({word})' if word else ''}{_advice(word)}")

    @property
    def is_final(self) -> bool:
        """Whether retrying is useless."""
        return self.status not in REFUSED_FOR_NOW


class GivenUpError(FedvoxError):
    """A task that cannot be answered as intended.

    Attributes
    ----------
    failure
        The failure to report to the server.
    """

    def __init__(self, problem: str, failure: Failure) -> None:
        self.failure = failure
        super().__init__(problem)


def _advice(word: str) -> str:
    advice = {
        "clock": "; synchronise this machine's clock with a time server",
        "unknown-site": "; ask the coordinator whether this site's certificate is still accepted",
    }
    return advice.get(word, "")
