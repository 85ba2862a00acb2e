"""What holds of a federation at this hospital now, and a person's approval of it; for commands and pages alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from client.consent.decisions import Approval, DecisionBook, Decisions
from client.consent.disclosure import ConsentError, Request, read_request
from client.consent.policy import Policy, PolicyError
from client.consent.site_config import SITE_FILE, SiteConfig, load_site_config
from client.consent.terms import HospitalLimits, terms_of
from client.state_folder import AUDIT_FILE
from common.audit import AuditError, AuditSummary, Entry, verify
from common.config.federation import FederationConfig


@dataclass(frozen=True)
class Standing:
    """What was decided about a federation, and what follows.

    Attributes
    ----------
    site
        The hospital's site file.
    violations
        What the federation asks for beyond the site file, one sentence each.
    approval
        The approval that covers kit and limits as they are now; None without one.
    changed
        Why an approval that was given no longer counts; None if it does, or there is none.
    is_automatic
        Whether the site file approves by itself.
    used
        How much of a person's approval is used, in words; empty without one.
    """

    site: SiteConfig
    decisions: Decisions
    violations: list[str]
    approval: Approval | None
    changed: str | None
    is_automatic: bool
    used: str = ""

    def data_terms(self) -> Iterator[str]:
        """Say how the site file changes what is read from the hospital's data."""
        site = self.site
        if site.patient_from_name is not None:
            rule = "Patients are named by the site file's rule, where there is no patients.csv"
            yield f"{rule}: {site.patient_from_name}"
        for what, names in (("label", site.labels_map), ("channel", site.channels_map)):
            for name, target in names.items():
                yield f"Your site file maps the {what} {name!r} of your data to {target!r} of the federation."


def standing_of(request: Request, kit: Path, state: Path, consent: Path) -> Standing:
    """Return what holds of a kit's federation.

    Parameters
    ----------
    request
        What the kit asks for.
    kit, state, consent
        As for ``Policy``.

    Raises
    ------
    FedvoxError
        A file of the kit, the site file or the decisions cannot be used.
    """
    site, decisions = load_site_config(state / SITE_FILE), DecisionBook(state, consent).read()
    violations = _violations(site, request.federation)
    policy = Policy(kit, state, consent)
    is_automatic = policy.is_automatic(site) and not violations and decisions.withdrawn is None
    approval, changed, used = None, None, ""
    try:
        approval = policy.approval(decisions, site)
        if approval is not None and not approval.automatic:
            used = policy.contract().summary(request.federation.rounds)
    except PolicyError as error:
        changed = str(error)
    return Standing(site, decisions, violations, approval, changed, is_automatic, used)


@dataclass(frozen=True)
class Agreed:
    """A new approval; ``weaker`` names the hospital's limits that were stricter at the one before."""

    approval: Approval
    limits: HospitalLimits
    weaker: list[str]


def agree(kit: Path, state: Path, consent: Path, user: str | None = None, digest: str | None = None) -> Agreed:
    """Record a person's approval of what a kit asks for.

    Parameters
    ----------
    kit, state, consent
        As for ``Policy``.
    user
        The name that the person gives.
    digest
        What they have reviewed; None approves whatever the kit holds.

    Raises
    ------
    ConsentError
        The kit has another digest, or the site file does not allow its federation.
    FedvoxError
        A file cannot be read or written.
    """
    federation = read_request(kit).federation
    found = federation.digest()
    if digest is not None and digest != found:
        raise ConsentError(f"{kit}: has digest {found}, not {digest}; review it again")
    site = load_site_config(state / SITE_FILE)
    if violations := _violations(site, federation):
        raise ConsentError(f"{state / SITE_FILE}: does not allow this federation: {'; '.join(violations)}")
    book, terms, limits = DecisionBook(state, consent), terms_of(kit), HospitalLimits.of(site)
    before = book.read().approval(terms, automatic=False)
    approval = book.approve(federation.name, terms, limits, user)
    return Agreed(approval, limits, [] if before is None else limits.weaker_than(before.hospital))


def prove_log(
    state: Path, decisions: Decisions, expected: str | None = None, see: Callable[[Entry], object] | None = None
) -> AuditSummary:
    """Verify a site's audit log, and that it holds every approval.

    Parameters
    ----------
    state
        The site's state folder.
    expected
        A hash that was noted earlier, required in the chain.
    see
        As for ``common.audit.verify``.

    Raises
    ------
    AuditError
        The log is missing, broken or another one.
    """
    log = state / AUDIT_FILE
    proof = verify(log, see)
    if expected is not None and expected not in proof.hashes:
        raise AuditError(
            log, f"has no entry with the hash {expected}: the log was replaced, or the hash is from another log"
        )
    for approval in decisions.approvals:
        if approval.audit not in proof.hashes:
            raise AuditError(
                log, f"lacks the approval of {approval.time}, which approvals.json has: the log was replaced"
            )
    return proof


def _violations(site: SiteConfig, federation: FederationConfig) -> list[str]:
    return [*site.limits.violations(federation), *site.privacy.violations(federation)]
