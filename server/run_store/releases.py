"""Notes that release sites from quarantine. Anybody who may write the folder leaves one; the round loop takes them."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from common.system.files import write_atomically

_FOLDER = "releases"


def note_release(run: Path, site: str) -> None:
    """Leave a note that a site is released."""
    (run / _FOLDER).mkdir(exist_ok=True)
    write_atomically(run / _FOLDER / f"{hashlib.sha256(site.encode()).hexdigest()[:24]}.txt", site)


def noted_releases(run: Path) -> dict[Path, str]:
    """Return the notes that nobody has taken yet, and the site that each names."""
    found = {}
    for note in sorted((run / _FOLDER).glob("*.txt")):
        # Whoever takes it may be faster.
        with suppress(OSError):
            found[note] = note.read_text(encoding="utf-8", errors="replace")
    return found
