"""Refused requests: the error that answers the site, and the counts and log for the operator."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from common.errors import OutputError
from common.formatting import visible
from common.system.files import write_atomically

NOBODY = "(unknown)"
"""Stands for the site's name when the sender is not authenticated."""
LINES_PER_SECOND = 5
_LARGEST_PATH = 120
log = logging.getLogger("fedvox.gateway")


class RefusedError(Exception):
    """A request that is answered with an error.

    Parameters
    ----------
    status
        The HTTP status.
    reason
        One word; sent as the answer's body and used as the key for counting.
    headers
        The answer's headers.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


class Refusals:
    """Counts refused requests by site and reason in a file, and logs them, at most a few per second.

    Parameters
    ----------
    file
        JSON, site -> reason -> count; counting continues from its content.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counts = _read(file)
        self._is_saved = True
        self._second = 0
        self._lines = 0
        self._suppressed = 0

    def count(self, site: str, refusal: RefusedError, method: str, path: str) -> None:
        """Count one refusal; ``save`` writes it to the file."""
        self._counts.setdefault(site, Counter())[refusal.reason] += 1
        self._is_saved = False
        second = int(time.monotonic())
        if second != self._second:
            self._log_suppressed()
            self._second, self._lines = second, 0
        if self._lines >= LINES_PER_SECOND:
            self._suppressed += 1
            return
        self._lines += 1
        what = visible(f"{method} {path}")[:_LARGEST_PATH]
        log.warning("%s: %s refused: %s (%d)", site, what, refusal.reason, refusal.status)

    def save(self) -> None:
        """Write the counts if they changed; call about once a second."""
        if int(time.monotonic()) != self._second:
            self._log_suppressed()
        if self._is_saved:
            return
        self._is_saved = True
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(self._counts, indent=1, sort_keys=True))
        except (OSError, OutputError) as error:
            log.warning("%s: cannot be written: %s", self._file, error)

    def _log_suppressed(self) -> None:
        if self._suppressed:
            log.warning("%d more requests were refused", self._suppressed)
            self._suppressed = 0


def _read(file: Path) -> dict[str, Counter[str]]:
    try:
        content = json.loads(file.read_bytes())
        return {str(site): Counter({str(k): int(v) for k, v in reasons.items()}) for site, reasons in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
