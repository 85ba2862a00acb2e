"""The command ``fedvox-server``: reads options, calls the other rooms, and prints. Nothing is computed here."""

from server.cli.entry import main

__all__ = ["main"]
