"""The checklist of FUTURE-AI: its 30 recommendations, in our words, with what the run answers and what people must.

Lekadir et al., FUTURE-AI: international consensus guideline for trustworthy and deployable artificial intelligence in
healthcare. BMJ 2025;388:e081554, doi:10.1136/bmj-2024-081554.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.formatting import counted
from server.formatting import format_seconds
from server.reporting.dossier import statements
from server.reporting.dossier.document import (
    Page,
    Section,
    Statement,
    brief,
    by_design,
    declared,
    left_open,
    listed,
    row,
    shown,
)
from server.reporting.dossier.facts import RunFacts
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import AUDIT_FILE, FEDERATION_FILE, PARTITION_FILE, PLAN_FILE, ROUNDS_FILE
from server.run_store.record import as_number

REFERENCE = (
    "Lekadir K et al. FUTURE-AI: international consensus guideline for trustworthy and deployable artificial "
    "intelligence in healthcare. BMJ 2025;388:e081554, doi:10.1136/bmj-2024-081554. The 30 recommendations are in six "
    "principles and seven general ones; their wording here is ours."
)
_CLINICIANS = "clinicians and epidemiologists of the hospitals"
_LEAD = "the study's lead"
_USERS = "those who will use the model"
_LEGAL = "regulatory affairs or legal department"


def _nothing(_: RunFacts) -> Iterable[Statement]:
    return ()


@dataclass(frozen=True)
class _Item:
    """A recommendation in our words, what people must answer, who, and what the run answers."""

    words: str
    question: str
    who: str
    answer: Callable[[RunFacts], Iterable[Statement]] = _nothing


def checklist(facts: RunFacts) -> Page:
    """Return the page."""
    sections = tuple(
        Section(
            principle,
            tuple(
                row(
                    f"{principle} {number}. {item.words}",
                    *item.answer(facts),
                    left_open(item.question, item.who),
                )
                for number, item in enumerate(items, start=1)
            ),
            tabular=True,
        )
        for principle, items in RECOMMENDATIONS.items()
    )
    return Page(
        "future-ai", "Checklist: FUTURE-AI", f"{REFERENCE} Every line stays open until a person closes it.", sections
    )


def _no_attributes(_: RunFacts) -> Iterable[Statement]:
    yield by_design(
        "The closed list has no attribute of a person. The federation counts patients and knows nothing of their age, "
        "sex, origin or disease."
    )


def _scores_by_site(facts: RunFacts) -> Iterable[Statement]:
    best = as_number(facts.run.summary.get("best_round"))
    line = None if best is None else facts.run.line_of_model(int(best))
    scores = (
        {}
        if line is None
        else {name: part.mean_dice for name, part in line.sites.items() if part.mean_dice is not None}
    )
    if not scores:
        yield shown("No scores of a released model are recorded by site.", ROUNDS_FILE)
        return
    low, high = (choose(scores, key=scores.__getitem__) for choose in (min, max))
    noise = ", with noise" if facts.privacy is not None else ""
    yield declared(
        f"Mean Dice of the released model by site: lowest {scores[low]:.3f} ({brief(low)}), highest {scores[high]:.3f} "
        f"({brief(high)}), on each site's own held-out patients{noise}. Groups within a site were not compared.",
        ROUNDS_FILE,
    )


def _purpose(facts: RunFacts) -> Iterable[Statement]:
    yield statements.purpose(facts)


def _standards(facts: RunFacts) -> Iterable[Statement]:
    yield by_design("Scans and results are DICOM or NIfTI; scores are Dice, HD95, ASSD and NSD.", "dicom.md")
    plan = facts.run.plan
    if plan is not None:
        codes = [f"{code.scheme} {code.value}" for code in plan.label_codes.values()]
        text = f"Labels with a code: {listed(codes)}." if codes else "No label has a code of a terminology."
        yield shown(text, PLAN_FILE)


def _sites_scored(facts: RunFacts) -> Iterable[Statement]:
    what = "simulated sites" if facts.is_simulated else "sites"
    yield shown(
        f"{counted(len(facts.run.sites), 'site')} are in the record, all of them {what} that trained. The run scored "
        "the model on no data from outside.",
        ROUNDS_FILE,
    )


def _local(_: RunFacts) -> Iterable[Statement]:
    yield by_design("fedvox-client evaluate scores the model on a hospital's own labelled scans.", "models.md")


def _risk_table(_: RunFacts) -> Iterable[Statement]:
    yield by_design("The page Risks is an input, of training and not of clinical use.", "dossier.md")


def _documents(_: RunFacts) -> Iterable[Statement]:
    yield by_design("This dossier, the report and the model card.", "dossier.md")


def _checks(_: RunFacts) -> Iterable[Statement]:
    yield by_design("A site's data are checked before it joins.", "data.md")
    yield by_design(
        "The model labels any scan, also one of another body part, and does not say that it does not know it.",
        "dossier.md",
    )


def _training_log(facts: RunFacts) -> Iterable[Statement]:
    if facts.audit is None:
        yield shown("The run has no audit log.", AUDIT_FILE)
    else:
        yield shown("The audit log covers the training. It says nothing of the model's use.", AUDIT_FILE)


def _oversight(_: RunFacts) -> Iterable[Statement]:
    yield by_design("Results are segmentations that a person can look at and correct in other programs.", "dicom.md")


def _variation(facts: RunFacts) -> Iterable[Statement]:
    differences = [f"{brief(site.name)}: {brief(site.differs)}" for site in facts.run.sites if site.differs]
    if differences:
        yield shown(f"How the simulated sites differ: {listed(differences, 20)}.", PARTITION_FILE)


def _patients(facts: RunFacts) -> Iterable[Statement]:
    yield next(iter(statements.patients(facts)))


def _augmentation(facts: RunFacts) -> Iterable[Statement]:
    training = facts.section("training") or {}
    if "augmentation" in training:
        text = (
            "Training varied the scans by augmentation."
            if training["augmentation"]
            else "Training used no augmentation."
        )
        yield shown(text, FEDERATION_FILE)
    yield from _scores_by_site(facts)


def _privacy(facts: RunFacts) -> Iterable[Statement]:
    yield next(iter(statements.privacy(facts)))
    yield by_design("Measures and their limits are in the threat model.")


def _evaluation(_: RunFacts) -> Iterable[Statement]:
    yield by_design(
        "Each site scores on patients that it holds out. The round to release is chosen by the same scores, which "
        "makes them optimistic.",
        "simulate.md",
    )


def _cost(facts: RunFacts) -> Iterable[Statement]:
    yield shown(f"All rounds took {format_seconds(facts.total('seconds'))}. Energy was not measured.", SUMMARY_FILE)


RECOMMENDATIONS = {
    "Fairness": (
        _Item("Name where bias may come from, early", "Sources of bias in these data and this use.", _CLINICIANS),
        _Item(
            "Collect attributes of people and data",
            "Age, sex, origin, scanner and others that matter here, at each hospital.",
            "each hospital",
            _no_attributes,
        ),
        _Item(
            "Measure bias and correct it",
            "Scores by group within each hospital.",
            "each hospital, with a statistician",
            _scores_by_site,
        ),
    ),
    "Universality": (
        _Item(
            "Define the clinical settings and how they differ", "Settings in which it is to be used.", _LEAD, _purpose
        ),
        _Item("Use standards of the field", "Definitions by which the labels were drawn.", _CLINICIANS, _standards),
        _Item(
            "Evaluate with external data or at several sites", "Data from outside the federation.", _LEAD, _sites_scored
        ),
        _Item("Show validity where it is used", "A local evaluation at each place of use.", "each hospital", _local),
    ),
    "Traceability": (
        _Item("Manage risks over the whole life cycle", "The risk management file.", _LEGAL, _risk_table),
        _Item(
            "Document, technically and clinically", "Instructions for use, and words for patients.", _LEAD, _documents
        ),
        _Item(
            "Control the quality of inputs and outputs", "Checks at the place of use.", "each hospital's IT", _checks
        ),
        _Item("Audit and update at intervals", "When the model is scored again, and who decides.", _LEAD),
        _Item(
            "Log its use", "What is logged at the place of use, and for how long.", "each hospital's IT", _training_log
        ),
        _Item("Set up governance", "Who is responsible for what, also for errors.", "the consortium's board"),
    ),
    "Usability": (
        _Item("Define intended use and users' needs early", "Intended use, users, workflow.", _LEAD, _purpose),
        _Item("Design interaction and human oversight", "Who checks each result, and how.", _USERS, _oversight),
        _Item("Train the users", "Material and courses for users.", _LEAD),
        _Item("Evaluate users' experience", "A test with users who did not build it.", _USERS),
        _Item("Evaluate clinical benefit and safety", "A study of benefit and harm.", _LEAD),
    ),
    "Robustness": (
        _Item("Name where data vary, early", "Scanners, protocols and artefacts to expect.", _CLINICIANS, _variation),
        _Item(
            "Train on representative data", "Whether these patients represent those of the use.", _CLINICIANS, _patients
        ),
        _Item(
            "Evaluate and improve robustness", "Scores under noise, artefacts and other scanners.", _LEAD, _augmentation
        ),
    ),
    "Explainability": (
        _Item(
            "Decide with users whether explanations are needed", "Whether seeing the segmentation is enough.", _USERS
        ),
        _Item("Evaluate explanations with users", "If there are any: whether they help.", _USERS),
    ),
    "General": (
        _Item("Involve all who have a stake", "Patients, ethicists, IT and others who were heard.", _LEAD),
        _Item(
            "Protect privacy and security",
            "The assessment itself (page on GDPR Art. 35).",
            "data-protection officer",
            _privacy,
        ),
        _Item("Act on the risks found", "Which measure answers which risk.", _LEAD, _risk_table),
        _Item("Plan the evaluation", "Test data, measures and comparison, fixed beforehand.", _LEAD, _evaluation),
        _Item(
            "Comply with the law",
            "Whether it is a medical device or a high-risk AI system, and of which class.",
            _LEGAL,
        ),
        _Item(
            "Look at the ethical issues of this use", "Issues of this use, and the ethics board's vote.", "ethics board"
        ),
        _Item(
            "Look at effects on society, work and environment",
            "Effects on work, skills, and patients' trust; energy.",
            _LEAD,
            _cost,
        ),
    ),
}
"""Principle -> its recommendations in the guideline's order."""
