"""What the gateway refuses: the error that says so to a site, and the counts that say so to the operator."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from common.errors import OutputError
from common.system.files import write_atomically

NOBODY = "(unknown)"
"""In place of a site's name where nothing proves who sent a request."""
LINES_PER_SECOND = 5
_LARGEST_PATH = 120
log = logging.getLogger("fedvox.gateway")


class RefusedError(Exception):
    """A request that is answered with an error.

    Parameters
    ----------
    status
        of HTTP.
    reason
        one word, which the sender gets as the body and which is counted.
    headers
        of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


class Refusals:
    """Counts refused requests by site and reason in a file, and names each in the log, a few a second at most.

    Parameters
    ----------
    file
        JSON, site -> reason -> how often; counts go on from what it holds.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counts = _read(file)
        self._is_written = True
        self._second = 0
        self._lines = 0
        self._unsaid = 0

    def count(self, site: str, refusal: RefusedError, method: str, path: str) -> None:
        """Notes one refusal; ``save`` writes it."""
        self._counts.setdefault(site, Counter())[refusal.reason] += 1
        self._is_written = False
        second = int(time.monotonic())
        if second != self._second:
            self._say_unsaid()
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_SECOND:
            self._unsaid += 1
            return
        self._lines += 1
        # Method and path come from outside: as Python writes them, they cannot break out of their line.
        what = f"{ascii(method)[1:-1]} {ascii(path)[1:-1]}"[:_LARGEST_PATH]
        log.warning("%s: %s is refused: %s (%d)", site, what, refusal.reason, refusal.status)

    def save(self) -> None:
        """Writes the counts if there are new ones; to be called about once a second."""
        if int(time.monotonic()) != self._second:
            self._say_unsaid()
        if self._is_written:
            return
        self._is_written = True
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(self._counts, indent=1, sort_keys=True))
        except (OSError, OutputError) as error:
            log.warning("%s: cannot be written: %s", self._file, error)

    def _say_unsaid(self) -> None:
        if self._unsaid:
            log.warning("%d more requests were refused", self._unsaid)
            self._unsaid = 0


def _read(file: Path) -> dict[str, Counter[str]]:
    try:
        content = json.loads(file.read_bytes())
        return {str(site): Counter({str(k): int(v) for k, v in reasons.items()}) for site, reasons in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
