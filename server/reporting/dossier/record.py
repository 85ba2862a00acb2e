"""Inputs for a record of processing activities: what GDPR Art. 30 (1) asks for, item by item."""

from __future__ import annotations

from collections.abc import Iterator

from common.formatting import counted
from server.reporting.dossier import statements
from server.reporting.dossier.document import Page, Row, Section, Statement, by_design, declared, left_open, row, shown
from server.reporting.dossier.facts import UPDATE_FOLDERS, RunFacts
from server.run_store.folder import FEDERATION_FILE

_OFFICER = "the data-protection officer"
_OFFICERS = "the data-protection officers of coordinator and hospitals"


def record_of_processing(facts: RunFacts) -> Page:
    """Return the page."""
    return Page(
        "record-of-processing",
        "Record of processing: inputs (GDPR Art. 30)",
        "What the run can contribute to the record that each controller keeps. The record itself is theirs. Letters "
        "are those of Art. 30 (1). A coordinator that is a processor keeps the shorter record of Art. 30 (2).",
        (
            Section(
                "The items of Art. 30 (1)",
                (
                    _controller(facts),
                    row(
                        "(b) Purposes of the processing",
                        statements.purpose(facts),
                        left_open("The purpose in legal words, and whether it is research, care or product.", _OFFICER),
                    ),
                    row("(c) Categories of data subjects", *statements.patients(facts), _staff(facts)),
                    row("(c) Categories of personal data", *_categories(facts), *statements.closed_list(facts)),
                    _recipients(facts),
                    row("(e) Transfers to third countries", _transfers(facts)),
                    _erasure(facts),
                    _measures(facts),
                ),
            ),
        ),
    )


def _controller(facts: RunFacts) -> Row:
    return row(
        "(a) Controller and data-protection officer",
        statements.participants(facts),
        left_open(
            "Names and contact details of the controllers, of joint controllers (Art. 26), of their representatives "
            "and data-protection officers.",
            "the legal departments of coordinator and hospitals",
        ),
        left_open(
            "Whether the coordinator is a controller, a joint controller or a processor (Art. 28), and under which "
            "agreement.",
            _OFFICERS,
        ),
    )


def _staff(facts: RunFacts) -> Statement | None:
    if facts.is_simulated:
        return None
    return by_design(
        "Staff of the hospitals: decisions and audit logs there name the person who decided, and so do consent "
        "documents that a hospital hands on.",
        "privacy.md",
    )


def _categories(facts: RunFacts) -> Iterator[Statement]:
    if facts.is_phantom:
        return
    where = "On this machine" if facts.is_simulated else "At each hospital"
    yield by_design(
        f"{where}: scans and label maps of patients, and preprocessed copies of them. They are data concerning health "
        "(Art. 4 (15), Art. 9).",
        "data.md",
    )
    if facts.privacy is not None and not facts.is_simulated:
        yield by_design("The privacy ledger there: a pseudonym of each patient, and what was spent.", "privacy.md")
    yield left_open(
        "Whether updates and the model count as personal data here. Without differential privacy it is prudent to "
        "assume so.",
        _OFFICERS,
    )


def _recipients(facts: RunFacts) -> Row:
    if facts.is_simulated:
        return row(
            "(d) Recipients",
            by_design("The server and the sites of a simulation are one program.", "simulate.md"),
            *statements.onlookers(facts),
            left_open("Who was given the model, the report or this dossier.", "the coordinator"),
        )
    address = statements.endpoint(facts)
    return row(
        "(d) Recipients",
        declared(f"The coordinator's server at {address}.", FEDERATION_FILE) if address else None,
        by_design(
            "The coordinator's server receives each site's updates and numbers. Each site receives the global model of "
            "every round, and no other site's numbers."
        ),
        *statements.onlookers(facts),
        left_open("Processors, such as whoever hosts the server or maintains machines (Art. 28).", _OFFICERS),
        left_open("Who receives the released model, under which licence.", "the coordinator"),
    )


def _transfers(facts: RunFacts) -> Statement:
    if facts.is_simulated:
        return left_open("Where the machine of this simulation stands, and who runs it.", "the coordinator's IT")
    return left_open(
        "In which countries the server and the hospitals are, and on what a transfer rests (Art. 44 to 49).",
        "the coordinator's IT and legal department",
    )


def _erasure(facts: RunFacts) -> Row:
    return row(
        "(f) Time limits for erasure",
        by_design(
            "Updates of single sites are kept for the contributions of sites, as simulation.keep_updates_gb asks."
            if facts.keeps_updates
            else "Updates of single sites are removed when the run ends, but not overwritten on the disk."
        ),
        by_design("Models, scores and logs stay until somebody deletes the run folder."),
        _leftovers(facts),
        by_design("What is already part of a model stays in it, also when a hospital leaves.", "operations.md"),
        left_open("How long run folder, models and backups are kept, and who deletes them.", "the coordinator"),
        left_open(
            "How long caches, decisions, audit log and ledger are kept at each hospital. Without its ledger, what "
            "patients have spent is not known.",
            "each hospital",
        )
        if not facts.is_simulated
        else None,
    )


def _leftovers(facts: RunFacts) -> Statement:
    if facts.waiting:
        return shown(
            f"The run folder still holds {counted(facts.waiting, 'file')} of single sites' updates.", *UPDATE_FOLDERS
        )
    return shown("The run folder holds no update of a single site any more.", *UPDATE_FOLDERS)


def _measures(facts: RunFacts) -> Row:
    network = by_design(
        "Mutual TLS 1.3 with certificates of the federation's own authority; requests signed by the site and valid "
        "once; training in a process without a network, where preflight found that the machine allows it; a closed "
        "list of what leaves; consent of each hospital to one configuration; audit logs whose entries hold each "
        "other's hashes."
    )
    return row(
        "(g) Technical and organisational measures",
        None if facts.is_simulated else network,
        *statements.privacy(facts),
        left_open(
            "Who may log in on the machines, encryption of their disks, backups, training of staff, and what happens "
            "after an incident.",
            "IT security of coordinator and hospitals",
        ),
    )
