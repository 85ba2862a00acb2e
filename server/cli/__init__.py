"""The command ``fedvox-server``: parses options, calls the other packages, and prints results."""

from server.cli.entry import main

__all__ = ["main"]
