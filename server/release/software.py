"""Which software a run was made with, for its summary: versions change, and nobody remembers them afterwards."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distributions

from common.formatting import visible

MOST_PACKAGES = 2_000


@cache
def installed_packages() -> dict[str, str]:
    """Return name -> version of all Python packages that this program could import, in the order of their names."""
    found: dict[str, str] = {}
    for package in distributions():
        name = package.metadata["Name"]
        # Of two with one name Python imports the first; a folder without a name is what a broken removal leaves.
        if name and package.version:
            found.setdefault(visible(name), visible(package.version))
    return dict(sorted(found.items(), key=lambda item: item[0].lower())[:MOST_PACKAGES])
