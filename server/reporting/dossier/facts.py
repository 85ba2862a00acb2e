"""What the dossier's pages need of a run folder, read once with the readers that report and status use too."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from common.audit import AuditError, AuditSummary, verify
from common.errors import DamagedFileError
from common.system.state_file import digest_of_file
from server.reporting.dossier.consent import ConsentDocument
from server.reporting.report import run_status
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import (
    AUDIT_FILE,
    FEDERATION_FILE,
    PARTITION_FILE,
    PLAN_FILE,
    ROUNDS_FILE,
    STATE_FILE,
    TRACKING_LOCK,
    RunFolder,
    RunState,
)
from server.run_store.live_status import STATUS_FILE, NetworkStatus, read_network_status
from server.run_store.locks import UPDATES
from server.run_store.record import RunRecord, as_number
from server.run_store.record_reader import read_run
from server.run_store.site_reports import FILE as REPORTS_FILE
from server.run_store.site_reports import SiteReport

EVENTS_FILE = "events.jsonl"
MODEL_FILE = "model/model.safetensors"
_EVIDENCE = (
    *(FEDERATION_FILE, PLAN_FILE, PARTITION_FILE, "data.json", ROUNDS_FILE, EVENTS_FILE, STATE_FILE, SUMMARY_FILE),
    *("validation.csv", AUDIT_FILE, REPORTS_FILE, STATUS_FILE, "model/model.json", MODEL_FILE),
)
UPDATE_FOLDERS = (f"{UPDATES}/", "gateway/sites/", "kept_updates/")
_UPDATES = (f"{UPDATES}/**/*", "gateway/sites/*/updates/*", "kept_updates/**/*")
"""Where updates of single sites lie."""


@dataclass(frozen=True)
class RunFacts:
    """A run, as far as its folder tells.

    Attributes
    ----------
    state
        None if there is none, or if it is damaged (then ``run.notes`` says so).
    network
        The last status of a run over a network.
    audit
        Summary of the coordinator's audit log if its chain is whole, what is wrong with it, or None without one.
    reports
        Site -> what it last reported of its ledger and audit log.
    files
        SHA-256 of the files that the dossier rests on, by name.
    waiting
        Number of files that are left in the folders of single sites' updates.
    consents
        Documents that hospitals gave to the coordinator.
    """

    run: RunRecord
    state: RunState | None
    network: NetworkStatus | None
    audit: AuditSummary | str | None
    reports: Mapping[str, SiteReport]
    files: Mapping[str, str]
    waiting: int
    consents: Sequence[ConsentDocument] = ()

    @property
    def title(self) -> str:
        """Name of the federation."""
        return self.run.title

    @property
    def status(self) -> Mapping[str, str]:
        """``key``, ``title`` and ``text`` of the run's status."""
        return run_status(self.run)

    @property
    def is_finished(self) -> bool:
        """Whether all rounds are complete."""
        return str(self.run.summary.get("status")) == "finished"

    @cached_property
    def is_simulated(self) -> bool:
        """Whether the sites were simulated on the coordinator's own machines."""
        engines = [event.get("engine") for event in self.run.events if event.get("event") == "started"]
        engine = self.run.summary.get("engine") or (engines[-1] if engines else None)
        if engine is None:
            return not self.run.configuration.get("network")
        return str(engine) != "network"

    @property
    def is_phantom(self) -> bool:
        """Whether all volumes are synthetic."""
        simulation = self.section("simulation")
        return self.is_simulated and bool(simulation and simulation.get("phantom"))

    @property
    def was_tracked(self) -> bool:
        """Whether a tracker was used for the run in this folder."""
        return (self.run.folder / TRACKING_LOCK).exists()

    @property
    def keeps_updates(self) -> bool:
        """Whether the federation keeps updates of single sites beyond their round."""
        return bool((self.section("simulation") or {}).get("keep_updates_gb"))

    @property
    def privacy(self) -> Mapping[str, Any] | None:
        """The federation's differential privacy; None without."""
        return self.section("privacy")

    def section(self, name: str) -> Mapping[str, Any] | None:
        """Return a section of the federation file; None if there is none."""
        found = self.run.configuration.get(name)
        return found if isinstance(found, Mapping) else None

    @property
    def sites(self) -> list[str]:
        """The sites that the run knows: those of the federation file, then those that only the rounds name."""
        listed = (self.section("network") or {}).get("sites")
        names = [str(name) for name in listed] if isinstance(listed, list) else []
        return list(dict.fromkeys([*names, *(site.name for site in self.run.sites)]))

    @property
    def site_versions(self) -> dict[str, Mapping[str, Any]]:
        """Site -> versions of its software, as it reported them last over a network."""
        ready = self.events("site_ready")
        found = {str(event.get("site")): event.get("versions") for event in ready}
        return {site: versions for site, versions in found.items() if isinstance(versions, Mapping)}

    @property
    def run_id(self) -> str | None:
        """Random name of the run."""
        return None if self.state is None else self.state.run

    @property
    def updates_by_round(self) -> dict[int, int]:
        """Number of updates that counted, by round, for all rounds that changed the model."""
        failed = {event.get("round") for event in self.run.events if event.get("event") == "round_failed"}
        found = {
            line.number: sum(part.status == "ok" for part in line.sites.values())
            for line in self.run.training_rounds
            if line.number not in failed
        }
        return {number: count for number, count in found.items() if count}

    @property
    def refusals(self) -> Counter[str]:
        """How often replies of sites did not count, by reason."""
        return Counter(
            brief_reason(part.reason, part.status)
            for line in self.run.rounds
            for part in line.sites.values()
            if part.status != "ok"
        )

    def with_consents(self, consents: Sequence[ConsentDocument]) -> RunFacts:
        """Return the facts with documents of hospitals."""
        return replace(self, consents=tuple(consents))

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """Return all events of a name."""
        return [event for event in self.run.events if event.get("event") == name]

    def total(self, key: str) -> float:
        """Return a total of bytes or seconds: the summary's, or the sum over complete rounds."""
        stated = as_number(self.run.summary.get(key))
        return sum(getattr(line, key) or 0.0 for line in self.run.rounds) if stated is None else stated


def brief_reason(reason: str | None, status: str) -> str:
    """Return why a reply did not count, as one short text."""
    return f"{status} ({reason})" if reason else status


def gather(folder: Path) -> RunFacts:
    """Read a run folder, finished or not.

    Raises
    ------
    FedvoxError
        If it is not the folder of a run.
    """
    run = read_run(folder)
    opened = RunFolder(folder)
    try:
        state = opened.load_state()
    except DamagedFileError:
        state = None  # a note of the record says so
    return RunFacts(
        run=run,
        state=state,
        network=read_network_status(folder),
        audit=_audit(folder),
        reports=_reports(run, opened),
        files=_digests(folder),
        waiting=sum(path.is_file() for pattern in _UPDATES for path in folder.glob(pattern)),
    )


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for name in _EVIDENCE:
        with contextlib.suppress(OSError):  # missing, or unreadable, of which the record has a note
            found[name] = digest_of_file(folder / name)
    return found


def _audit(folder: Path) -> AuditSummary | str | None:
    path = folder / AUDIT_FILE
    if not path.exists():
        return None
    try:
        return verify(path)
    except AuditError as error:
        return str(error).replace(str(path), AUDIT_FILE)


def _reports(run: RunRecord, folder: RunFolder) -> dict[str, SiteReport]:
    try:
        found = {site.name: folder.reports.last(site.name) for site in run.sites}
    except DamagedFileError as error:
        run.notes.append(f"{REPORTS_FILE}: {error.problem}.")
        return {}
    return {name: report for name, report in found.items() if report.ledger or report.audit}
