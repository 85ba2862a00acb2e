"""What the run folder proves about itself: digests, the audit log's chain, and what sites reported of theirs."""

from __future__ import annotations

from common.audit import AuditSummary
from common.formatting import counted
from server.reporting.dossier import statements
from server.reporting.dossier.document import (
    Page,
    Row,
    Section,
    Statement,
    brief,
    by_design,
    declared,
    left_open,
    row,
    shown,
)
from server.reporting.dossier.facts import MODEL_FILE, RunFacts
from server.run_store.folder import AUDIT_FILE, FEDERATION_FILE, STATE_FILE
from server.run_store.site_reports import FILE as REPORTS_FILE


def evidence(facts: RunFacts, about_card: str) -> Page:
    """Return the page; ``about_card`` says whether there is a model card."""
    card, course = row("Model card", shown(about_card, "model/")), row("Course", statements.progress(facts))
    sections = [Section("The run", (_identity(facts), course, card, _damage(facts)))]
    if facts.is_simulated:
        nothing = row("Ledgers and audit logs of hospitals", shown(statements.NO_HOSPITAL, "events.jsonl"))
        sections.append(Section("Sites", (nothing,)))
    else:
        sections.append(Section("Audit log of the coordinator", (_audit(facts),)))
        sections.append(Section("Ledgers and audit logs of the sites", _site_rows(facts), _ABOUT_HEADS))
    files = (shown(f"{digest} {name}", name) for name, digest in facts.files.items())
    about = "As they were when the dossier was written."
    sections.append(Section("Files that this dossier rests on", (row("SHA-256", *files),), about))
    return Page(
        "evidence",
        "Evidence: digests, ledgers and audit logs",
        "By these digests a reader can check that the dossier belongs to a run folder, and that a hospital's own "
        "records go on from what it reported.",
        tuple(sections),
    )


_ABOUT_HEADS = (
    "A site reports the hash of the last entry of its privacy ledger and of its audit log. Ledger and log stay at the "
    "hospital. To check that one still holds the entry, the hospital runs fedvox-client audit --kit KIT --verify "
    "--expect HASH, or fedvox-client ledger --verify."
)


def _identity(facts: RunFacts) -> Row:
    model = facts.files.get(MODEL_FILE)
    return row(
        "Identity",
        shown(f"Run {facts.run_id}, of the configuration with the digest {brief(facts.state.digest)}.", STATE_FILE)
        if facts.state
        else left_open("The run has no readable state, so its identity is not known.", "the coordinator"),
        shown(f"Released model: SHA-256 {model}.", MODEL_FILE) if model else shown("No model is released.", "model/"),
        left_open(
            "That the hospitals saw the same configuration: fedvox-client review shows its digest there.",
            "each hospital",
        )
        if not facts.is_simulated
        else None,
    )


def _damage(facts: RunFacts) -> Row:
    if facts.run.notes:
        return row("Condition of the files", *(shown(brief(note), "the file named") for note in facts.run.notes[:50]))
    if facts.state is None:
        return row("Condition of the files", shown("There is no state yet to compare files with.", STATE_FILE))
    return row(
        "Condition of the files",
        shown("Every file that the state names has the digest that was written down.", STATE_FILE),
        by_design(
            "Whoever can write the run folder can also write another state. The digests find damage, not a forger.",
            "backup.md",
        ),
    )


def _audit(facts: RunFacts) -> Row:
    found: Statement
    if facts.audit is None:
        found = shown("There is no audit log.", AUDIT_FILE)
    elif not isinstance(facts.audit, AuditSummary):
        found = shown(f"The chain is BROKEN: {brief(facts.audit)}.", AUDIT_FILE)
    else:
        events = ", ".join(f"{brief(name)} {count}" for name, count in sorted(facts.audit.events.items()))
        torn = " A last entry was cut off by a crash." if facts.audit.torn_bytes else ""
        found = shown(
            f"The chain is whole: {counted(facts.audit.entries, 'entry', 'entries')} from {facts.audit.first} to "
            f"{facts.audit.last}, the last with the hash {facts.audit.head}. Entries: {events}.{torn}",
            AUDIT_FILE,
        )
    return row(
        "Chain",
        found,
        by_design("The chain shows changes only against a hash that was noted outside of the machine."),
        left_open("Whether the last hash was noted elsewhere, by whom and where.", "the coordinator"),
    )


def _site_rows(facts: RunFacts) -> tuple[Row, ...]:
    rows = []
    for site in facts.sites:
        report = facts.reports.get(site)
        if report is None:
            rows.append(row(brief(site), shown("Has reported nothing.", REPORTS_FILE)))
            continue
        parts = [
            "" if report.epsilon is None else f"epsilon {report.epsilon:.3f} spent in this federation",
            "" if report.ledger is None else f"last entry of the ledger {report.ledger}",
            "" if report.audit is None else f"last entry of the audit log {report.audit}",
        ]
        rows.append(row(brief(site), declared(f"{'; '.join(filter(None, parts))}.", REPORTS_FILE)))
    return tuple(rows) or (row("Sites", shown("No site is known yet.", FEDERATION_FILE)),)
