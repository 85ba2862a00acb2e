"""Documents that hospitals hand to the coordinator: what ``fedvox-client review --json`` wrote there.

A hospital's decisions never leave it by the program, so a run folder has none. A document is the hospital's word: it is
not signed, and the dossier says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from server.reporting.dossier.document import brief

MOST_BYTES = 4_000_000
_HOW = "ask the hospital for the output of: fedvox-client review --kit KIT --json"


@dataclass(frozen=True)
class ConsentDocument:
    """What one hospital says that it was asked, and what it decided.

    Attributes
    ----------
    sha256
        Of the file.
    decision
        What held when it was written, in words.
    """

    site: str
    sha256: str
    decision: str


def read_consents(files: Sequence[Path], digest: str | None, sites: Collection[str]) -> list[ConsentDocument]:
    """Read the documents of a run's hospitals.

    Parameters
    ----------
    files
        One file for each hospital.
    digest
        Digest of the run's federation.
    sites
        The sites that the run knows.

    Raises
    ------
    ConfigError
        A file is no such document, is of another federation or of no site of the run, or is the second of its hospital.
    """
    found: dict[str, ConsentDocument] = {}
    for file in files:
        document = _read(file, digest)
        if document.site not in sites:
            raise ConfigError(f"{file}: is of a site that the run does not know ({brief(document.site)}); {_HOW}")
        if document.site in found:
            raise ConfigError(f"{file}: is the second document of {document.site}; give one for each hospital")
        found[document.site] = document
    return [found[site] for site in sorted(found)]


def _read(file: Path, digest: str | None) -> ConsentDocument:
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        values = json.loads(content) if len(content) <= MOST_BYTES else None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        values = None
    decisions = values.get("site_decisions") if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(decisions, dict) or not isinstance(values.get("site"), str):
        raise ConfigError(f"{file}: is not a consent document; {_HOW}")
    if digest is None or values.get("digest") != digest:
        raise ConfigError(f"{file}: is about another federation than the run ({digest or 'not known'}); {_HOW}")
    return ConsentDocument(values["site"], hashlib.sha256(content).hexdigest(), _decision(decisions))


def _decision(decisions: Mapping[str, Any]) -> str:
    """Say what holds; an approval alone says nothing, because other entries can take it back."""
    by = {
        key: f"{key} by {brief(found.get('user'))}, {brief(found.get('time'))}"
        for key in ("withdrawn", "approved", "paused")
        if isinstance(found := decisions.get(key), dict)
    }
    if "withdrawn" in by:
        return by["withdrawn"]
    if changed := decisions.get("changed"):
        return f"no task is accepted: {brief(changed)}"
    if decisions.get("outside_limits"):
        return "no task is accepted: the federation is outside the hospital's own limits"
    if "approved" not in by and decisions.get("automatic") is not True:
        return "not approved"
    approved = by.get("approved", "approved by the limits in the hospital's site file, not by a person")
    return "; ".join([approved, *([by["paused"]] if "paused" in by else [])])
