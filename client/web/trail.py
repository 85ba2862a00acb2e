"""What left this building, who decided what, and whether the log of both is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from client.consent.decisions import DecisionBook
from client.consent.policy import COUNTED_EVENT, SENT_EVENT
from client.consent.sent_summary import Departure, departures, summary
from client.consent.standing import prove_log
from client.ledger.ledger import SPENT_EVENT
from client.state_folder import APPROVALS_FILE, AUDIT_FILE
from client.web.place import Place
from common.audit import AuditSummary, Entry, head_of, read_entries
from common.errors import FedvoxError
from common.web.marks import Remembered, mark_of
from common.web.visits import Answer, Page, Visit
from common.weights.digest import is_sha256

MOST_ROWS = 100
MOST_EVENTS = 60
LONGEST_DETAILS = 300
_OF_TASKS = frozenset({"task_accepted", COUNTED_EVENT, SENT_EVENT, SPENT_EVENT})
"""Events of every task, which would push the others off the page."""
_NO_NEWS = ("at_time", "read")
"""Details that say nothing more than the entry does."""


@dataclass(frozen=True)
class Trail:
    """The audit log as it is now.

    Attributes
    ----------
    sent
        What left, newest first.
    totals
        As ``client.consent.sent_summary.summary``.
    events
        The last other entries, newest first.
    proof
        Of the whole chain; None if it is broken, and then ``problem`` says how.
    back
        Times between which the clock went back, oldest first.
    """

    sent: Sequence[Departure]
    totals: Mapping[str, Any]
    events: Sequence[tuple[str, str, str]]
    proof: AuditSummary | None
    problem: str
    back: Sequence[tuple[str, str]]


class TrailPages:
    """Shows the audit log."""

    def __init__(self, place: Place) -> None:
        self._place = place
        log = place.state / AUDIT_FILE
        self.files = [log, head_of(log), place.state / APPROVALS_FILE]
        self._trail = Remembered(partial(mark_of, *self.files), self._read)

    def page(self, visit: Visit) -> Answer:
        """Show a part of what left, the totals and the proof."""
        trail = self._trail.get()
        pages = max(1, -(-len(trail.sent) // MOST_ROWS))
        asked = visit.query.get("page", "1")
        number = min(max(int(asked), 1), pages) if asked.isdecimal() and len(asked) < 10 else 1
        rows = trail.sent[(number - 1) * MOST_ROWS : number * MOST_ROWS]
        return Page("sent.html.jinja", {"trail": trail, "rows": rows, "number": number, "pages": pages})

    def _read(self) -> Trail:
        state, entries = self._place.state, list[Entry]()
        proof, problem = None, ""
        if any(file.exists() for file in self.files[:2]):
            try:
                proof = prove_log(state, DecisionBook(state, self._place.consent).read(), see=entries.append)
            except FedvoxError as error:
                problem = str(error)
                entries = _unverified(self._place)
        sent = departures(entries)
        others = [entry for entry in entries if entry.event not in _OF_TASKS]
        events = [(entry.time, entry.event, _details(entry)) for entry in others[-MOST_EVENTS:]]
        times = [entry.time for entry in entries]
        back = [(before, after) for before, after in pairwise(times) if after < before]
        return Trail(sent[::-1], summary(sent), events[::-1], proof, problem, back)


def _unverified(place: Place) -> list[Entry]:
    try:
        return read_entries(place.state / AUDIT_FILE)
    except FedvoxError:
        return []


def _details(entry: Entry) -> str:
    """Return what an entry says besides its event, shortened: a person wants who and why, not every digest whole."""
    about = entry.details.get("about")
    given = entry.details | (about if isinstance(about, dict) else {})
    shown = {key: value for key, value in given.items() if not isinstance(value, dict | list) and key not in _NO_NEWS}
    text = ", ".join(f"{key}: {_short(value)}" for key, value in shown.items() if value not in (None, "", False))
    return text if len(text) <= LONGEST_DETAILS else f"{text[:LONGEST_DETAILS]}…"


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if is_sha256(text) else text
