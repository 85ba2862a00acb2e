"""Inputs for a data-protection impact assessment: what GDPR Art. 35 (7) and (9) ask for, item by item."""

from __future__ import annotations

from common.formatting import counted
from server.formatting import format_seconds
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
from server.reporting.dossier.facts import EVENTS_FILE, RunFacts
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import FEDERATION_FILE, PLAN_FILE, ROUNDS_FILE

_OFFICER = "the data-protection officer of each controller"
_LEAD = "the study's lead"
_BOARD = "the ethics board or review board"


def impact_assessment(facts: RunFacts) -> Page:
    """Return the page."""
    about = (
        "Inputs for the assessment that a controller makes before high-risk processing. It is not the assessment: "
        "whether the processing is necessary and the risk acceptable, people decide. Letters are those of Art. 35 (7)."
    )
    if facts.is_simulated:
        about += (
            " A federation between hospitals needs an assessment of its own: this simulation shows none of its risks."
        )
    return Page(
        "dpia",
        "Data-protection impact assessment: inputs (GDPR Art. 35)",
        about,
        (
            Section("(a) Description of the processing", (*_description(facts),)),
            Section("(b) Necessity and proportionality", (*_necessity(facts),)),
            Section("(c) Risks to the rights and freedoms of patients", (*_risks(facts),)),
            Section("(d) Measures", (*_measures(facts),)),
            Section("Consultation", (*_consultation(),)),
        ),
    )


def _description(facts: RunFacts) -> tuple[Row, ...]:
    return (
        row(
            "Purpose",
            statements.purpose(facts),
            left_open(
                "Who is to benefit and how, and the legitimate interest where the processing rests on one.", _LEAD
            ),
        ),
        row("Participants", statements.participants(facts)),
        row("Course", statements.progress(facts), _work(facts)),
        row("Data subjects", *statements.patients(facts)),
        row("What crosses", *statements.closed_list(facts)),
        row("Who else may see", *statements.onlookers(facts)),
        row("Technology", *_technology(facts)),
        row(
            "Context",
            left_open(
                "What patients were told and expect, whether they depend on the hospital, and how the study came "
                "about.",
                "the physician in charge at each hospital",
            ),
        ),
    )


def _work(facts: RunFacts) -> Statement:
    training, strategy = facts.section("training") or {}, facts.section("strategy") or {}
    steps = brief(training.get("local_steps", "an unknown number of"))
    algorithm = brief(strategy.get("name", "an algorithm that the file leaves at its default"))
    return shown(
        f"In a round each site trains the global model for {steps} steps on its own scans. The server combines the "
        f"updates by {algorithm}. All rounds took {format_seconds(facts.total('seconds'))}.",
        FEDERATION_FILE,
        SUMMARY_FILE,
    )


def _technology(facts: RunFacts) -> tuple[Statement, ...]:
    built = by_design(
        "The model assigns a label to every voxel. It decides nothing about a person by itself.", "models.md"
    )
    if facts.run.plan is None:
        return (built,)
    channels = ", ".join(str(width) for width in facts.run.plan.model.channels)
    return (shown(f"A 3D U-Net with {channels} channels.", PLAN_FILE), built)


def _necessity(facts: RunFacts) -> tuple[Row, ...]:
    return (
        row(
            "Legal basis",
            left_open("Legal basis (Art. 6) and exception for health data (Art. 9 (2)); national law.", _OFFICER),
            left_open("Vote of the ethics board, with date and number.", _BOARD),
        ),
        row(
            "Less intrusive ways",
            by_design("A simulation needs all scans on one machine. A federation would leave them where they are.")
            if facts.is_simulated
            else by_design("The scans stay where they are. What leaves is the closed list, and updates of the model."),
            left_open(
                "Why fewer patients, synthetic or anonymous scans, or a model that exists would not do.",
                _LEAD,
            ),
        ),
        row("Minimisation", _fingerprint(facts), *statements.privacy(facts)),
        row(
            "Information of patients",
            left_open("How patients are told (Art. 13, 14), or why they are not.", "the physician in charge"),
        ),
        row(
            "Rights of patients",
            by_design("What is already part of a model stays in it.", "operations.md"),
            by_design("A hospital can stop at any time, and leave a patient out of later runs.", "operations.md")
            if not facts.is_simulated
            else None,
            left_open("How access, objection and erasure are handled, and until when a patient can object.", _OFFICER),
        ),
        row(
            "Decision of each hospital",
            *_decisions(facts),
        ),
        row(
            "Storage limitation",
            left_open("How long run folder, models, caches and logs are kept.", "coordinator and hospitals"),
        ),
    )


def _fingerprint(facts: RunFacts) -> Statement | None:
    if facts.is_simulated:
        return None
    return by_design(
        "Where a federation chose its plan from fingerprints, each hospital shared sums over its data once, before the "
        "run. The run folder does not say whether this federation did.",
        "network.md",
    )


def _decisions(facts: RunFacts) -> tuple[Statement, ...]:
    if facts.is_simulated:
        return (shown("A simulation: no hospital took part, and the program asked none.", EVENTS_FILE),)
    built = by_design(
        "A site refuses every task until a person there, or limits that the hospital set, approved exactly this "
        "configuration. It can pause and withdraw, from the next task on. Decisions stay at the hospital."
    )
    given = {document.site: document for document in facts.consents}
    told = [
        declared(
            f"{brief(site)}: {brief(document.decision)}. So says the hospital's own document, which is not signed and "
            "does not say when it was written.",
            f"given document, SHA-256 {document.sha256}",
        )
        for site, document in given.items()
    ]
    missing = [brief(site) for site in facts.sites if site not in given]
    if missing:
        told.append(
            left_open(
                f"Who decided for {', '.join(missing)}, and when: fedvox-client review --json there, handed to this "
                "command with --consent.",
                "each hospital",
            )
        )
    refused = {
        reason: count
        for reason, count in facts.refusals.items()
        if any(word in reason for word in ("not-approved", "paused", "withdrawn", "privacy-budget", "outside-limits"))
    }
    for reason, count in refused.items():
        told.append(shown(f"Sites refused by their own rules, {counted(count, 'time')}: {brief(reason)}.", ROUNDS_FILE))
    return (built, *told)


def _risks(facts: RunFacts) -> tuple[Row, ...]:
    return (
        row(
            "List of risks",
            by_design("The page risks has them one by one, with what this run shows and what it does not."),
            left_open(
                "Likelihood and severity of each for these patients, before and after measures.",
                f"{_OFFICER}, with IT security",
            ),
        ),
        row("What a model can reveal of a patient", *statements.privacy(facts), _not_attacked()),
        row(
            "Harm by a wrong segmentation",
            left_open("For what the model will be used, and who checks its results.", "the physician in charge"),
        ),
    )


def _not_attacked() -> Statement:
    return left_open(
        "The run tried no attack on the model. Whether somebody should, before it is released (membership inference, "
        "reconstruction).",
        "the study's lead, with IT security",
    )


def _measures(facts: RunFacts) -> tuple[Row, ...]:
    machine = left_open("Safeguards of the machine on which the simulation ran.", "the coordinator's IT")
    network = by_design("Measures of the program, with their tests, are in the threat model.")
    return (
        row("Built in", machine if facts.is_simulated else network),
        row("In this run", *statements.privacy(facts)),
        row("Around it", left_open("Contracts, access rules, training, handling of incidents.", "each controller")),
    )


def _consultation() -> tuple[Row, ...]:
    return (
        row("Data-protection officer, Art. 35 (2)", left_open("Advice, with date.", _OFFICER)),
        row("Patients or their representatives, Art. 35 (9)", left_open("Views sought, or why not.", _LEAD)),
        row("Supervisory authority, Art. 36", left_open("Whether a high risk remains that needs it.", _OFFICER)),
        row("Codes of conduct, Art. 35 (8)", left_open("Which apply, and whether they are kept.", _OFFICER)),
        row(
            "Review, Art. 35 (11)",
            left_open("When the assessment is looked at again, and what would change it.", _OFFICER),
        ),
    )
