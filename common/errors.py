"""Errors that a user can act on.

Every message names the file or key and says what to do, in one or two lines; the command lines print it
without a traceback. Anything else that escapes is a bug and is reported as one.
"""

from __future__ import annotations

from pathlib import Path


class FedvoxError(Exception):
    """Base of all errors that the command lines print as plain text."""

    exit_status = 1


class ConfigError(FedvoxError):
    """A federation file, a site file or a command-line value cannot be used."""

    exit_status = 2


class DataError(FedvoxError):
    """A scan, a label map or a dataset folder cannot be used.

    Attributes
    ----------
    path
        the file or folder at fault.
    problem
        what is wrong with it and what to do, without the path.
    """

    def __init__(self, path: Path | str, problem: str) -> None:
        self.path = Path(path)
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class BundleError(FedvoxError):
    """A model bundle is damaged, incomplete, or made for other data."""


class OutputError(FedvoxError):
    """A result cannot be written where the user asked for it."""


class ProtocolError(FedvoxError):
    """A message between server and site is not what the protocol allows."""
