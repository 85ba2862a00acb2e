"""Writes the dossier of a run into a new folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import OutputError
from common.system.files import new_folder, write_atomically
from server.reporting.dossier.consent import read_consents
from server.reporting.dossier.document import Page
from server.reporting.dossier.evidence import evidence
from server.reporting.dossier.facts import RunFacts, gather
from server.reporting.dossier.future_ai import checklist
from server.reporting.dossier.impact import impact_assessment
from server.reporting.dossier.markdown import cover_as_markdown, page_as_markdown
from server.reporting.dossier.record import record_of_processing
from server.reporting.dossier.risks import risk_table
from server.reporting.dossier.sbom import SBOM_FILE, bill_of_materials, software
from server.reporting.dossier.statements import NO_HOSPITAL


def write_dossier(run: Path, out: Path, consents: Sequence[Path] = ()) -> RunFacts:
    """Write the dossier of a run, finished or not.

    Parameters
    ----------
    run
        The run folder; nothing in it is changed.
    out
        A folder that does not exist yet. It appears when all its files are written.
    consents
        Consent documents of hospitals, as ``server.reporting.dossier.consent`` describes them.

    Returns
    -------
    RunFacts
        What the dossier was made from.

    Raises
    ------
    ConfigError
        A consent document cannot be used.
    FedvoxError
        ``run`` is not the folder of a run.
    OutputError
        ``out`` exists, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: already exists; choose another --out")
    facts = gather(run)
    if consents:
        digest = None if facts.state is None else facts.state.digest
        facts = facts.with_consents(read_consents(consents, digest))
    with new_folder(out) as folder:
        for name, content in files_of(facts).items():
            write_atomically(folder / name, content)
    return facts


def files_of(facts: RunFacts) -> dict[str, str]:
    """Return the content of every file of the dossier, by name."""
    pages, notices = pages_of(facts), notices_of(facts)
    bill = (SBOM_FILE, "software bill of materials, for programs that read CycloneDX")
    found = {"README.md": cover_as_markdown(facts, pages, [bill], notices), SBOM_FILE: bill_of_materials(facts)}
    return found | {f"{page.name}.md": page_as_markdown(page, notices) for page in pages}


def pages_of(facts: RunFacts) -> list[Page]:
    """Return all pages, in their order."""
    return [
        impact_assessment(facts),
        record_of_processing(facts),
        risk_table(facts),
        checklist(facts),
        software(facts),
        evidence(facts),
    ]


def notices_of(facts: RunFacts) -> list[str]:
    """Return what a reader must know before anything else."""
    notices = []
    if not facts.is_finished:
        notices.append(
            f"DRAFT: this run is not finished ({facts.status['title']}). The dossier covers complete rounds."
        )
    if facts.is_simulated:
        notices.append(NO_HOSPITAL)
    if facts.is_phantom:
        notices.append("PHANTOM: synthetic volumes, not scans of people.")
    if facts.run.notes:
        notices.append("Some files of the run are damaged or could not be read in full; see the page Evidence.")
    return notices
