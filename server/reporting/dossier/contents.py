"""What a dossier consists of: its pages, its other files, and what a reader must know first."""

from __future__ import annotations

from dataclasses import dataclass

import common
from server.reporting.dossier.card import CARD_FILE, card_of
from server.reporting.dossier.document import Page
from server.reporting.dossier.evidence import evidence
from server.reporting.dossier.facts import RunFacts
from server.reporting.dossier.future_ai import checklist
from server.reporting.dossier.impact import impact_assessment
from server.reporting.dossier.record import record_of_processing
from server.reporting.dossier.risks import risk_table
from server.reporting.dossier.sbom import SBOM_FILE, software
from server.reporting.dossier.statements import NO_HOSPITAL
from server.reporting.report import as_time
from server.run_store.folder import now

_ABOUT = (
    "The dossier holds what the run folder shows and names what people must add. It is no approval, no legal advice "
    "and no statement of conformity."
)


@dataclass(frozen=True)
class Dossier:
    """A dossier before it is written.

    Attributes
    ----------
    files
        Name and contents of the files that are no pages.
    card
        The model card in Markdown; None if there is no model.
    notices
        What a reader must know first.
    about
        What a dossier is, and who wrote this one when.
    """

    facts: RunFacts
    pages: tuple[Page, ...]
    files: tuple[tuple[str, str], ...]
    card: str | None
    notices: tuple[str, ...]
    about: str

    @property
    def open_count(self) -> int:
        """How many statements people must fill in."""
        return sum(page.open_count for page in self.pages)


def compose(facts: RunFacts) -> Dossier:
    """Return the dossier of a run."""
    card, about_card = card_of(facts)
    pages = (
        impact_assessment(facts),
        record_of_processing(facts),
        risk_table(facts),
        checklist(facts),
        software(facts),
        evidence(facts, about_card),
    )
    files = [(SBOM_FILE, "the software bill of materials for programs (CycloneDX)")]
    if card is not None:
        files.insert(0, (CARD_FILE, "the card of the released model"))
    about = f"{_ABOUT} Written by Fedvox {common.__version__} on {as_time(now())}."
    return Dossier(facts, pages, tuple(files), card, tuple(_notices(facts)), about)


def _notices(facts: RunFacts) -> list[str]:
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
