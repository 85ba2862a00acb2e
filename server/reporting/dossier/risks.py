"""The risk table: the threats of ``deploy/docs/threat-model.md``, what limits each, and what this run shows of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

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
    left_open,
    listed,
    row,
    shown,
)
from server.reporting.dossier.facts import EVENTS_FILE, UPDATE_FOLDERS, RunFacts
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import AUDIT_FILE, FEDERATION_FILE, ROUNDS_FILE, STATE_FILE
from server.run_store.live_status import STATUS_FILE

_SECURITY = "IT security of coordinator and hospitals"
_COORDINATOR = "the coordinator's IT security"
_NOT_TRIED = "Not exercised: the sites were simulated on the coordinator's machines."


def risk_table(facts: RunFacts) -> Page:
    """Return the page."""
    groups = {
        "What is learned about patients": _about_patients(facts),
        "Who could interfere": (*_about_hospitals(facts), *_about_server(facts)),
        "What the program does not cover": _not_covered(facts),
    }
    number = itertools.count(1)
    sections = (
        Section(title, tuple(replace(row, topic=f"R{next(number)}. {row.topic}") for row in rows), tabular=True)
        for title, rows in groups.items()
    )
    return Page(
        "risks",
        "Risk table",
        "The threats of the threat model (deploy/docs/threat-model.md) and what the run adds to each. That nothing is "
        "recorded does not prove that nothing happened. Likelihood and severity are left to people.",
        tuple(sections),
    )


def _about_patients(facts: RunFacts) -> tuple[Row, ...]:
    return (
        row("The released model reveals something about a single patient", *statements.privacy(facts)),
        row(
            "The coordinator learns about patients from one site's update",
            by_design("The server sees each site's update. Only differential privacy bounds what it reveals."),
            _seen_by_server(facts),
            left_open("Whom the hospitals trust to run the server, and under which contract.", "legal departments"),
        ),
        row(
            "Another hospital works out a site's update",
            by_design(
                "A site gets the global model alone. If two updates count in a round, each of the two sites can "
                "subtract its own from the change."
            ),
            _fewest_updates(facts),
        ),
        row(
            "Scans leave a hospital",
            by_design(
                "No message can hold one, and the process with the scans has no network where the machine allows that "
                "(fedvox-client preflight says so). If that process is compromised, it can still hide data in the "
                "numbers of an update."
            ),
            shown(_NOT_TRIED, EVENTS_FILE) if facts.is_simulated else None,
            left_open(
                "That a hospital's own log shows nothing else: fedvox-client audit --verify there. The run cannot show "
                "what left a hospital by other ways.",
                "each hospital",
            )
            if not facts.is_simulated
            else None,
        ),
        row(
            "A fingerprint of a hospital's data reveals something about a patient",
            by_design(
                "It is sums, without cells of few patients, and the hospital makes no second one that differs by few."
            ),
            shown("A simulation needs no fingerprint from hospitals.", EVENTS_FILE)
            if facts.is_simulated
            else left_open(
                "Whether the federation asked for fingerprints: the run folder does not say.", "the coordinator"
            ),
        ),
        row("Others watch the run", *statements.onlookers(facts)),
    )


def _seen_by_server(facts: RunFacts) -> Statement:
    if facts.waiting:
        return shown(
            f"The run folder holds {counted(facts.waiting, 'file')} of single sites' updates now.", *UPDATE_FOLDERS
        )
    return shown("No update of a single site lies in the run folder any more.", *UPDATE_FOLDERS)


def _fewest_updates(facts: RunFacts) -> Statement:
    counts = facts.updates_by_round
    if not counts:
        return shown("No round has changed the model yet.", ROUNDS_FILE)
    fewest = min(counts.values())
    rounds = [number for number, count in counts.items() if count == fewest]
    text = f"At least {counted(fewest, 'update')} counted in every round that changed the model."
    if fewest <= 2:
        text = (
            f"Only {counted(fewest, 'update')} counted in {counted(len(rounds), 'round')} ({listed(rounds, 10)}): "
            "there a site's update could be read off the models before and after."
        )
    return shown(text, ROUNDS_FILE)


def _about_hospitals(facts: RunFacts) -> tuple[Row, ...]:
    return (
        row(
            "A site poisons the model",
            by_design(
                "Updates must be finite and of the agreed form; their length and the declared patients count within "
                "bounds; a site that pushes against the others in three of five rounds is quarantined. A small pull, "
                "round after round, passes."
            ),
            _remembered(facts),
            _refusals(facts),
            _alarms(facts),
        ),
        row(
            "Several sites collude",
            by_design(
                "A minority is recognised like a single site. Half of the sites or more decide what the model learns, "
                "and no check can tell them from an honest majority."
            ),
            shown(f"{counted(len(facts.sites), 'site')} are known to the run.", FEDERATION_FILE, ROUNDS_FILE),
        ),
        row(
            "Somebody takes part under a hospital's name",
            by_design(
                "Without the site's private key, no request is accepted. Who has the key can speak for the site."
            ),
            *_requests(facts),
            left_open("How keys reached the hospitals, and that none was copied.", _SECURITY),
        ),
    )


def _about_server(facts: RunFacts) -> tuple[Row, ...]:
    return (
        row(
            "Somebody reads or changes what is sent",
            by_design("Mutual TLS 1.3 with certificates of the federation's own authority."),
            shown(_NOT_TRIED, EVENTS_FILE) if facts.is_simulated else None,
        ),
        row(
            "The server is broken into",
            by_design(
                "The intruder has models and updates and can release a bad model. They cannot run code at a hospital "
                "or ask for more than the closed list."
            ),
            _audit(facts),
            left_open("How server and gateway are protected and watched.", _COORDINATOR),
        ),
        row(
            "Somebody poses as the server, with the key of the authority",
            by_design(
                "Hospitals trust whatever has a certificate of the federation's authority. It can then do what the "
                "server can, and make no hospital do what it has not approved."
            ),
            shown("A simulation has no authority and no keys.", EVENTS_FILE)
            if facts.is_simulated
            else left_open("Where authority/ca.key and copies of the kits are, and who can read them.", _COORDINATOR),
        ),
        row(
            "Somebody acts at a page in a browser without leave",
            by_design(
                "Pages are reached from their own machine alone, or over TLS, by links for one use each or a provider "
                "of identities. Each action is in the audit log before it is done. Nothing records who only looked."
            ),
            left_open("Who was given links, and who can use the machines that serve pages.", _SECURITY),
        ),
        row(
            "A hospital's ledger or audit log is set back to an older copy",
            by_design(
                "The server hands back what a site reported last, and the site compares. A lying server can stop the "
                "site, and one that hands nothing back is not noticed."
            ),
            _heads(facts),
        ),
        row(
            "A bad round is released",
            by_design("The median Dice over sites chooses, without scores that no other site supports."),
            _release(facts),
            left_open("Validation on patients of hospitals that did not take part.", "the study's lead"),
        ),
    )


def _remembered(facts: RunFacts) -> Statement | None:
    name = (facts.section("strategy") or {}).get("name")
    if name not in ("scaffold", "feddyn"):
        return None
    return by_design(
        f"With {name}, server and sites remember updates for the rest of the run, up to n - 2 times the length of the "
        "others' (twice, at least). Of three sites, one that lies can still move the model far."
    )


def _refusals(facts: RunFacts) -> Statement:
    refusals = facts.refusals
    if not refusals:
        return shown("Every reply in the record counted.", ROUNDS_FILE)
    reasons = listed((f"{reason}: {count}" for reason, count in sorted(refusals.items())), 20)
    return shown(f"Replies that did not count, by reason: {reasons}.", ROUNDS_FILE)


def _alarms(facts: RunFacts) -> Statement:
    quarantined = sorted({brief(event.get("site")) for event in facts.events("site_quarantined")})
    alarms = {str(event.get("about")): brief(event.get("text")) for event in facts.events("alarm")}
    if not quarantined and not alarms:
        return shown("No alarm and no quarantine is recorded.", EVENTS_FILE)
    sites = f"Quarantined at some time: {listed(quarantined)}. " if quarantined else ""
    return shown(f"{sites}{' '.join(f'Alarm: {text}' for text in list(alarms.values())[:20])}", EVENTS_FILE)


def _requests(facts: RunFacts) -> tuple[Statement, ...]:
    if facts.is_simulated:
        return (shown(_NOT_TRIED, EVENTS_FILE),)
    if facts.network is None:
        return (left_open("Which requests the gateway refused: there is no status.json.", "the coordinator"),)
    refused = facts.network.refused
    if not refused:
        return (shown("At the last status, the gateway had refused no request.", STATUS_FILE),)
    texts = listed(
        f"{brief(site)} ({', '.join(f'{count} x {brief(reason)}' for reason, count in sorted(reasons.items()))})"
        for site, reasons in sorted(refused.items())
    )
    return (shown(f"Requests that the gateway refused, by who sent them: {texts}.", STATUS_FILE),)


def _audit(facts: RunFacts) -> Statement:
    if isinstance(facts.audit, AuditSummary):
        return shown(
            f"The chain of the coordinator's audit log is whole: {counted(facts.audit.entries, 'entry', 'entries')}.",
            AUDIT_FILE,
        )
    if facts.audit is None:
        return shown("The run has no audit log.", AUDIT_FILE)
    return shown(f"The chain of the coordinator's audit log is BROKEN: {brief(facts.audit)}.", AUDIT_FILE)


def _heads(facts: RunFacts) -> Statement:
    if facts.is_simulated:
        return shown(_NOT_TRIED, EVENTS_FILE)
    count = sum(site in facts.reports for site in facts.sites)
    rolled = sum(counts for reason, counts in facts.refusals.items() if "rolled-back" in reason)
    noticed = f" Sites stopped because of an older copy: {counted(rolled, 'time')}." if rolled else ""
    return shown(
        f"{counted(count, 'site')} of {len(facts.sites)} reported the ends of their logs.{noticed}", ROUNDS_FILE
    )


def _release(facts: RunFacts) -> Statement:
    best = facts.run.summary.get("best_round")
    if best is None:
        return shown("No model is released.", SUMMARY_FILE)
    return shown(f"The model after round {brief(best)} is the one to release.", SUMMARY_FILE)


def _not_covered(facts: RunFacts) -> tuple[Row, ...]:
    failed, left = facts.events("round_failed"), facts.events("site_left")
    return (
        row(
            "Attacks on availability",
            by_design(
                "Each site has limits on requests, connections, uploads and stored files. Strangers cost a handshake."
            ),
            shown(
                f"{counted(len(failed), 'round')} failed for lack of updates; sites went away "
                f"{counted(len(left), 'time')}.",
                EVENTS_FILE,
            ),
            left_open("Which addresses reach the gateway.", _COORDINATOR),
        ),
        row(
            "The supply chain: a library or an image is not what it seems",
            by_design("Versions are pinned; neither they nor images are signed."),
            _versions(facts),
            left_open("From where each machine installed the program.", _SECURITY),
        ),
        row(
            "The kit is changed on its way to a hospital",
            by_design("fedvox-client review shows a digest to compare over another channel."),
            left_open("Whether the digests were compared, by whom, and over which channel.", "each hospital"),
        )
        if not facts.is_simulated
        else row("The kit is changed on its way to a hospital", shown("A simulation has no kits.", EVENTS_FILE)),
        row(
            "A lost disk, or an administrator who reads along",
            by_design(
                "The program encrypts no disk. Cache, state and run folder are as confidential as what they hold."
            ),
            left_open("Encryption and access on all machines.", _SECURITY),
        ),
        row(
            "Side channels of shared machines and GPUs",
            by_design("The program does nothing about them."),
            left_open("Who else computes on these machines.", _SECURITY),
        ),
        row(
            "Data stay longer than they are needed",
            by_design("The program deletes updates of single sites, and nothing else."),
            left_open("Time limits for run folder, models, caches, logs and backups.", "coordinator and hospitals"),
        ),
        row(
            "Files are changed or damaged afterwards",
            by_design("The state names files by their digest, and the audit log the end of each round."),
            _damage(facts),
        ),
    )


def _damage(facts: RunFacts) -> Statement:
    if facts.run.notes:
        return shown(listed(facts.run.notes, 10), "the files named")
    if facts.state is None:
        return shown("There is no state yet to compare files with.", STATE_FILE)
    return shown("Every file that the state names has the digest that was written down.", STATE_FILE)


def _versions(facts: RunFacts) -> Statement:
    versions = facts.run.summary.get("versions")
    if not isinstance(versions, dict):
        return shown("The run has recorded no versions yet.", SUMMARY_FILE)
    return shown(
        f"At the coordinator: {listed(f'{name} {version}' for name, version in versions.items())}.", SUMMARY_FILE
    )
