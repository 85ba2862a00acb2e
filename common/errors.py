"""Errors that a user can act on.

Every message names the file or key and says what to do, in one or two lines; the command-line programs print it
without a traceback. Any other exception is a bug and is reported as one.
"""

from __future__ import annotations

from pathlib import Path

from common.formatting import visible

RESTART_CANNOT_HELP = 2
"""Exit status of a program that would end in the same way again until somebody changes something."""


class FedvoxError(Exception):
    """Base of all errors that the command-line programs print as plain text."""

    exit_status = 1


class ConfigError(FedvoxError):
    """A federation file, a site file or a command-line value cannot be used."""

    exit_status = RESTART_CANNOT_HELP


class DamagedFileError(FedvoxError):
    """A file that Fedvox wrote is not as it was written, or is missing.

    Attributes
    ----------
    path
        The file.
    problem
        What is wrong with it.
    remedy
        What to do.
    """

    exit_status = RESTART_CANNOT_HELP

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        self.path = path
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{path}: {problem}; {remedy}")


class DataError(FedvoxError):
    """A scan, a label map or a dataset folder cannot be used. Names of files and labels in its text are made visible.

    Attributes
    ----------
    path
        The file or folder at fault.
    problem
        What is wrong with it and what to do, without the path.
    """

    def __init__(self, path: Path | str, problem: str) -> None:
        self.path = Path(path)
        self.problem = problem
        super().__init__(visible(f"{path}: {problem}"))


class BundleError(FedvoxError):
    """A model bundle is damaged, incomplete, or made for other data."""


class OutputError(FedvoxError):
    """A file cannot be written. Names of files in its text are made visible."""

    def __init__(self, text: str) -> None:
        super().__init__(visible(text))


class ProtocolError(FedvoxError):
    """A message between server and site violates the protocol."""


def was_interrupted(error: BaseException | None) -> bool:
    """Return whether an error is a KeyboardInterrupt, or hides one that was on its way when it was raised."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
