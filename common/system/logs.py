"""Logs of our processes: one format, in which nothing that somebody else can name forges a line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from common.formatting import visible

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFormatter(logging.Formatter):
    """Formats a record with its control characters made visible; a traceback keeps its lines."""

    def __init__(self, pattern: str = LOG_FORMAT) -> None:
        super().__init__(pattern)

    def format(self, record: logging.LogRecord) -> str:
        """Format the record."""
        line = logging.makeLogRecord(vars(record) | {"msg": visible(record.getMessage()), "args": ()})
        return visible(super().format(line), keep="\n")


def log_to_stderr(level: int, pattern: str = LOG_FORMAT) -> None:
    """Let all loggers of this process write to stderr, from a level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(pattern))
    logging.basicConfig(level=level, handlers=[handler], force=True)


@contextlib.contextmanager
def log_to_file(file: Path) -> Iterator[None]:
    """Also write our warnings and errors to a file, for a block; the file is made for the first of them.

    A command that does not show its log still does not.
    """
    log = logging.getLogger("fedvox")
    before = log.level, log.propagate
    handler = logging.FileHandler(file, encoding="utf-8", delay=True)
    handler.setFormatter(LogFormatter())
    handler.setLevel(logging.WARNING)
    log.addHandler(handler)
    if log.level > logging.WARNING:
        log.setLevel(logging.WARNING)
        log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
        log.level, log.propagate = before
