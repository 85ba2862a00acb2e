"""The software bill of materials: what the run recorded of the software that it used, as CycloneDX 1.6 in JSON.

No version of a component comes from the machine that writes the dossier. What the run did not record is missing, and
the bill says that it is incomplete. It says that the model was made with its components, and nothing about what each of
them needs: the run did not record that.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import common
from common.formatting import counted, visible
from server.reporting.dossier.document import Page, Section, Statement, brief, declared, left_open, listed, row, shown
from server.reporting.dossier.facts import EVENTS_FILE, MODEL_FILE, RunFacts
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import now

SBOM_FILE = "sbom.cdx.json"
COORDINATOR = "coordinator"
MOST_COMPONENTS = 10_000
_SEPARATORS = re.compile(r"[-_.]+")


@dataclass(frozen=True)
class Component:
    """One version of a package, and where it was used: at the coordinator, or at the sites named."""

    name: str
    version: str
    used_at: tuple[str, ...]

    @property
    def reference(self) -> str:
        """Package URL."""
        kind = "generic" if self.name == "python" else "pypi"
        return f"pkg:{kind}/{quote(_SEPARATORS.sub('-', self.name).lower(), safe='')}@{quote(self.version, safe='')}"


def components_of(facts: RunFacts) -> list[Component]:
    """Return what the run recorded, each version once, in the order of names."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for place, versions in _recorded(facts):
        for name, version in versions.items():
            if isinstance(version, str):
                found.setdefault((_shown(name), _shown(version)), {})[_shown(place)] = None
    unique = {item.reference: item for item in (Component(*key, tuple(places)) for key, places in found.items())}
    return sorted(unique.values(), key=lambda item: item.reference)[:MOST_COMPONENTS]


def bill_of_materials(facts: RunFacts) -> str:
    """Return the bill as JSON."""
    components = components_of(facts)
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "released-model" if MODEL_FILE in facts.files else "run",
        "name": _shown(facts.title),
        "version": _shown(facts.run_id or "unknown"),
    }
    if digest := facts.files.get(MODEL_FILE):
        model["hashes"] = [{"alg": "SHA-256", "content": digest}]
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": now(),
            "tools": {"components": [{"type": "application", "name": "fedvox", "version": common.__version__}]},
            "component": model,
            "properties": [
                {"name": "fedvox:run:status", "value": _shown(facts.status["title"])},
                {"name": "fedvox:run:simulated", "value": str(facts.is_simulated).lower()},
            ],
        },
        "components": [_as_component(item) for item in components],
        "dependencies": [{"ref": model["bom-ref"], "dependsOn": [item.reference for item in components]}],
        "compositions": [{"aggregate": "incomplete", "assemblies": [item.reference for item in components]}],
    }
    return json.dumps(content, indent=2) + "\n"


def software(facts: RunFacts) -> Page:
    """Return the page that says what the bill holds and what it lacks."""
    packages, versions = facts.run.summary.get("packages"), facts.run.summary.get("versions")
    if isinstance(packages, dict):
        there = shown(f"{counted(len(packages), 'Python package')}, as installed when the run ended.", SUMMARY_FILE)
    elif isinstance(versions, dict):
        few = listed(f"{name} {version}" for name, version in versions.items())
        there = shown(f"Only {few}; the run has no list of packages.", SUMMARY_FILE)
    else:
        there = shown("The run has recorded no versions yet.", SUMMARY_FILE)
    rows = [
        row(
            "At the coordinator",
            there,
            left_open("Operating system, drivers, container images and their digests.", "the coordinator's IT"),
        )
    ]
    if not facts.is_simulated:
        rows += [row(brief(site), *_at_site(facts, site)) for site in facts.sites]
    about = (
        f"{SBOM_FILE} lists it in CycloneDX 1.6. All versions are those that the run recorded. None is that of the "
        "machine on which the dossier was written. The bill says that the model was made with them, and not which of "
        "them needs which."
    )
    return Page("software", "Software bill of materials", about, (Section("What the bill holds", tuple(rows)),))


def _at_site(facts: RunFacts, site: str) -> Iterator[Statement]:
    versions = facts.site_versions.get(site)
    if versions:
        texts = listed(f"{name} {version}" for name, version in versions.items())
        yield declared(f"Reported when it came last: {texts}.", EVENTS_FILE)
    else:
        yield shown("The run has not recorded any version of this site.", EVENTS_FILE)
    yield left_open("Other packages, operating system, drivers and images there.", "the hospital's IT")


def _recorded(facts: RunFacts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key in ("versions", "packages"):
        versions = facts.run.summary.get(key)
        if isinstance(versions, dict):
            yield COORDINATOR, versions
    yield from facts.site_versions.items()


def _as_component(item: Component) -> dict[str, Any]:
    return {
        "type": "platform" if item.name == "python" else "library",
        "bom-ref": item.reference,
        "name": item.name,
        "version": item.version,
        "purl": item.reference,
        "properties": [{"name": "fedvox:used-at", "value": place} for place in item.used_at],
    }


def _shown(text: str) -> str:
    return visible(brief(text))
