"""The files of one site that its page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.state_folder import default_consent


@dataclass(frozen=True)
class Place:
    """What the page is about.

    Attributes
    ----------
    kit
        Folder that the coordinator sent.
    state
        The site's state folder.
    ledger
        The hospital's privacy ledger.
    data
        Dataset folder; None if it was not given.
    cache
        Folder for preprocessed scans, only to check its free space; None without one.
    """

    kit: Path
    state: Path
    ledger: Path
    data: Path | None = None
    cache: Path | None = None
    device: str = "auto"

    @property
    def consent(self) -> Path:
        """The hospital's own file."""
        return default_consent()
