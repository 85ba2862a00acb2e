"""The hospital's side for the shell: which pages there are, what can be done, and where it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.state_folder import AUDIT_FILE
from client.web.activity import ActivityPages
from client.web.checks import CheckPages
from client.web.decision import FIELDS, STOPS, DecisionPages
from client.web.jobs import Jobs
from client.web.place import Place
from client.web.scans import ScanPages
from client.web.spending import SpendingPages
from client.web.trail import TrailPages
from common.audit import AuditError, AuditLog
from common.web.marks import mark_of
from common.web.visits import Action, Side, Visit


def hospital_side(place: Place, jobs: Jobs, folder: Path) -> Side:
    """Return the pages of one site; its state folder exists.

    Parameters
    ----------
    jobs
        Does what takes long.
    folder
        For pictures and volumes; exists, and nobody else can read it.
    """
    decision, trail, spending = DecisionPages(place), TrailPages(place), SpendingPages(place)
    activity, checks = ActivityPages(place, trail.files[:1]), CheckPages(place, jobs, folder)
    scans = ScanPages(place, jobs, folder)

    def audit(visit: Visit, event: str, details: Mapping[str, Any]) -> None:
        del visit
        try:
            # A new one each time, which verifies the whole chain before it writes.
            AuditLog(place.state / AUDIT_FILE).append(event, **details)
        except AuditError:
            # As on the command line: stopping must work even if the log cannot be written.
            if details.get("action") not in STOPS:
                raise

    def watch() -> Mapping[str, object]:
        return {
            "decision": mark_of(*decision.files),
            "sent": mark_of(*trail.files),
            "spending": mark_of(*spending.files),
            "activity": activity.mark(),
            "jobs": jobs.mark(),
        }

    return Side(
        folder=Path(__file__).parent,
        pages={
            "/": decision.page,
            "/sent": trail.page,
            "/privacy": spending.page,
            "/live": activity.page,
            "/data": checks.page,
            "/data/pictures/{number:int}": checks.picture,
            "/scans": scans.listing,
            "/scans/{number:int}": scans.scan,
            "/scans/{number:int}/sheet.png": scans.sheet,
            "/scans/{number:int}/{volume}.nii.gz": scans.volume,
        },
        actions={
            "/approve": Action("approve", decision.approve, FIELDS),
            "/pause": Action("pause", decision.pause, FIELDS),
            "/resume": Action("resume", decision.resume, FIELDS),
            "/withdraw": Action("withdraw", decision.withdraw, FIELDS),
            "/data/check": Action("check", checks.check),
            "/data/preflight": Action("preflight", checks.preflight),
            "/scans/find": Action("find_scans", scans.find),
            "/scans/{number:int}/segment": Action("segment", scans.segment),
        },
        audit=audit,
        watch=watch,
    )
