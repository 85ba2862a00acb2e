"""Commands for a hospital's decisions and their audit: review, approve, pause, resume, withdraw, audit."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.cli.options import add_kit_options, add_ledger_file, positive_int
from common.errors import FedvoxError
from common.formatting import counted
from common.system.cli import add_command, add_json, show

if TYPE_CHECKING:
    from client.consent.decisions import Decision, DecisionBook
    from client.consent.disclosure import Request
    from client.consent.standing import Standing
    from client.site.budget_check import Outlook


def add_consent_commands(commands: Any) -> None:
    """Add the commands to the result of ``ArgumentParser.add_subparsers``."""
    review = add_command(commands, "review", _review, "explain what a federation asks of this site", "--kit kit")
    add_kit_options(review)
    review.add_argument(
        "--data", type=Path, metavar="DIR", help="show the privacy cost for the patients of this dataset folder"
    )
    add_ledger_file(review)
    add_json(review)

    approve_example = "--kit kit --user 'Dr. Example'"
    approve = add_command(commands, "approve", _approve, "agree to what review shows", approve_example)
    add_kit_options(approve)
    _add_user(approve)
    approve.add_argument(
        "--more-rounds", type=positive_int, metavar="N", help="allow N rounds more than were approved so far"
    )
    approve.add_argument("--digest", metavar="SHA256", help="approve only if the kit still has this digest")

    for name, function, text in (
        ("pause", _pause, "accept no more tasks until resume"),
        ("resume", _resume, "end a pause"),
        ("withdraw", _withdraw, "revoke the approval, from the next task on"),
    ):
        command = add_command(commands, name, function, text, "--kit kit")
        add_kit_options(command)
        _add_user(command)

    audit = add_command(
        commands, "audit", _audit, "show what was sent from this site, and verify the log", "--kit kit --verify"
    )
    add_kit_options(audit)
    audit.add_argument("--verify", action="store_true", help="verify the hash chain; exit status 1 if it is broken")
    audit.add_argument("--expect", metavar="SHA256", help="with --verify: a hash noted earlier, required in the chain")
    add_json(audit)


def _add_user(command: argparse.ArgumentParser) -> None:
    command.add_argument("--user", metavar="NAME", help="who decides (default: the account, which is always recorded)")


def _state(options: argparse.Namespace) -> Path:
    from common.config.kit import read_kit

    read_kit(options.kit, "site")
    state: Path | None = options.state
    return state if state is not None else options.kit / "state"


def _review(options: argparse.Namespace) -> int:
    from client.consent.disclosure import as_text, document, read_request
    from client.consent.standing import standing_of
    from client.state_folder import default_consent
    from common.config.federation import as_json

    state = _state(options)
    request = read_request(options.kit)
    content = document(request)
    found = _outlook(options, state, request)
    standing = standing_of(request, options.kit, state, default_consent())
    if options.json:
        content["site_decisions"] = _decisions_as_values(standing, found)
        show(as_json(content), end="")
        return 0
    show(as_text(content, shutil.get_terminal_size((100, 24)).columns))
    show()
    for violation in standing.violations:
        show(f"Outside your site's limits: {violation}.")
    for line in standing.data_terms():
        show(line)
    if found:
        whose = "The patients in " + str(options.data) if options.data else "Patients who have not taken part before"
        show(f"{whose}: {found}.")
    _tell_standing(standing, f"fedvox-client approve --kit {options.kit} --digest {content['digest']}")
    return 0


def _decisions_as_values(standing: Standing, found: Outlook | None) -> dict[str, Any]:
    decisions, approval, site = standing.decisions, standing.approval, standing.site
    return {
        "approved": approval.model_dump() if approval and not approval.automatic else None,
        "changed": standing.changed,
        "automatic": standing.is_automatic,
        "outside_limits": standing.violations,
        "paused": decisions.paused.model_dump() if decisions.paused else None,
        "withdrawn": decisions.withdrawn.model_dump() if decisions.withdrawn else None,
        "privacy": found.as_values() if found else None,
        "patient_from_name": site.patient_from_name,
        "labels_map": site.labels_map,
        "channels_map": site.channels_map,
    }


def _tell_standing(standing: Standing, command: str) -> None:
    decisions, approval = standing.decisions, standing.approval
    if standing.changed and not decisions.withdrawn:
        show(f"NO TASK IS ACCEPTED: {standing.changed}.")
    elif approval and not approval.automatic:
        show(f"Approved by {approval.user}, {approval.time}; {standing.used}.")
    elif standing.is_automatic:
        show("Within the limits of your site file, which approves it automatically.")
    elif not decisions.withdrawn:
        show(f"Not approved. To agree: {command}")
    for done, decision in (("Withdrawn", decisions.withdrawn), ("Paused", decisions.paused)):
        if decision is not None:
            show(f"{done} by {decision.user}, {decision.time}.")


def _outlook(options: argparse.Namespace, state: Path, request: Request) -> Outlook | None:
    """Return what the federation costs the patients of ``--data``, or new patients without it."""
    privacy = request.plan.privacy
    if privacy is None:
        return None
    # Late: SciPy takes a while to import.
    from client.consent.site_config import SITE_FILE, load_site_config
    from client.ledger.ledger import Ledger, Witness
    from client.site.budget_check import NEW_PATIENTS, find_people, outlook
    from client.state_folder import default_ledger

    site = load_site_config(state / SITE_FILE)
    ledger = Ledger(options.ledger or default_ledger(), Witness(state))
    people = NEW_PATIENTS
    if options.data is not None:
        # A read-only command stores nothing.
        people = find_people(request.federation, site, request.kit.site or "", options.data, None, ledger)
    return outlook(request.federation, privacy, site.privacy, ledger.read(), people)


def _approve(options: argparse.Namespace) -> int:
    from client.consent.disclosure import read_request
    from client.consent.site_config import SITE_FILE
    from client.consent.standing import agree
    from client.state_folder import default_consent

    state = _state(options)
    agreed = agree(options.kit, state, default_consent(), options.user, options.digest)
    approval, book = agreed.approval, _decisions(options)
    show(
        f"Approved {approval.federation} by {approval.user}, {approval.time}.\nDigest: {approval.kit.federation}\n"
        f"Your own limits, which are part of this ({state / SITE_FILE}): {agreed.limits}"
    )
    if agreed.weaker:
        show(f"Your own limits ({state / SITE_FILE}) are weaker than at the last approval: {', '.join(agreed.weaker)}")
    if options.more_rounds is not None:
        show(_allow_more(book, read_request(options.kit), options))
    if book.read().paused:
        show(f"The site is paused; to resume: fedvox-client resume --kit {options.kit}")
    return 0


def _allow_more(book: DecisionBook, request: Request, options: argparse.Namespace) -> str:
    """Allow more rounds, and return in words what that means."""
    from client.consent.terms import terms_of
    from common.privacy.accounting import largest_epsilon

    federation, privacy = request.federation, request.plan.privacy
    contract = book.allow_more(terms_of(options.kit), options.more_rounds, options.user)
    allowed = federation.rounds + contract.more_rounds
    text = f"{counted(allowed, 'round')} in all: {contract.summary(federation.rounds)}."
    if privacy is None or federation.privacy is None:
        return text
    epsilon = largest_epsilon(privacy.costs(allowed, allowed + 1), federation.privacy.delta)
    return (
        f"{text}\nWith all of them this federation costs a patient up to epsilon {epsilon:.2f} at delta "
        f"{federation.privacy.delta:g}, instead of {federation.privacy.epsilon:g}."
    )


def _pause(options: argparse.Namespace) -> int:
    return _tell_stop("Paused", _decisions(options).pause(options.user), "No task starts until fedvox-client resume.")


def _resume(options: argparse.Namespace) -> int:
    from client.consent.site_config import SITE_FILE, load_site_config

    state = _state(options)
    book = _decisions(options)
    decision = book.resume(options.user)
    show(f"Resumed by {decision.user}, {decision.time}.")
    if book.read().withdrawn:
        show("The site has withdrawn; only fedvox-client approve reverses that.")
    if load_site_config(state / SITE_FILE).paused:
        show(f"{state / SITE_FILE} still says paused: true.")
    return 0


def _withdraw(options: argparse.Namespace) -> int:
    return _tell_stop(
        "Withdrawn", _decisions(options).withdraw(options.user), "Only fedvox-client approve reverses that."
    )


def _decisions(options: argparse.Namespace) -> DecisionBook:
    from client.consent.decisions import DecisionBook
    from client.state_folder import default_consent

    return DecisionBook(_state(options), default_consent())


def _tell_stop(done: str, decision: Decision, end: str) -> int:
    show(f"{done} by {decision.user}, {decision.time}. {end}")
    show("A task in progress is finished and its result sent; stop fedvox-client start to prevent that.")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from client.consent.sent_summary import as_text, departures, summary
    from client.consent.standing import prove_log
    from client.state_folder import AUDIT_FILE
    from common.audit import read_entries
    from common.config.federation import as_json

    state = _state(options)
    if options.expect is not None and not options.verify:
        raise AuditUsageError("--expect: add --verify")
    proof = prove_log(state, _decisions(options).read(), options.expect) if options.verify else None
    content = summary(departures(read_entries(state / AUDIT_FILE)))
    if options.json:
        verified = {"entries": proof.entries, "head": proof.head, "events": proof.events} if proof else None
        show(as_json({"log": str(state / AUDIT_FILE), "verified": verified, **content}), end="")
        return 0
    show(as_text(content))
    show()
    if proof is None:
        show("The chain was not checked: add --verify.")
    else:
        show(
            f"The chain is intact: {counted(proof.entries, 'entry', 'entries')}, {proof.first} to {proof.last}.\n"
            f"Last hash: {proof.head}\nNote it elsewhere; --expect finds it again unless the log was rewritten."
        )
    return 0


class AuditUsageError(FedvoxError):
    """The options cannot be combined."""

    exit_status = 2
