"""Options that several commands of ``fedvox-client`` have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_kit_options(command: argparse.ArgumentParser) -> None:
    """Add ``--kit`` and ``--state``."""
    command.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the kit that the coordinator sent")
    command.add_argument("--state", type=Path, metavar="DIR", help="the site's own files (default: state in the kit)")


def add_ledger_file(command: argparse.ArgumentParser) -> None:
    """Add ``--ledger``."""
    command.add_argument("--ledger", type=Path, metavar="FILE", help="privacy ledger (default: $FEDVOX_LEDGER)")


def positive_int(text: str) -> int:
    """Return the whole number from 1 on that an option gives.

    Raises
    ------
    argparse.ArgumentTypeError
        The text is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from 1 on")
    return int(text)
