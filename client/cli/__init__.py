"""The command ``fedvox-client``: reads options, calls the other packages, and prints. Nothing is computed here."""

from client.cli.entry import main

__all__ = ["main"]
