"""The command ``fedvox-client``: reads options, calls the other rooms, and prints. Nothing is computed here."""

from client.cli.entry import main

__all__ = ["main"]
