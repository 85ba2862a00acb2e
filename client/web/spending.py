"""The privacy ledger as a picture of what is spent and what is left."""

from __future__ import annotations

from functools import partial
from typing import Any

from client.consent.site_config import SITE_FILE, load_site_config
from client.ledger.account import Account
from client.ledger.ledger import WITNESS_FILE, Ledger, Witness
from client.ledger.rollback import pending_claim
from client.ledger.statement import limit_of, view
from client.state_folder import AUDIT_FILE
from client.web.drawing import bar_of, chart_of
from client.web.place import Place
from common.audit import head_of
from common.web.marks import Remembered, mark_of
from common.web.visits import Answer, Page, Visit

MOST_DATASETS = 50


class SpendingPages:
    """Shows the hospital's ledger, of all federations."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.files = [place.ledger, head_of(place.ledger), place.state / SITE_FILE, place.state / WITNESS_FILE]
        self._values = Remembered(partial(mark_of, *self.files, place.state / AUDIT_FILE), self._read)

    def page(self, visit: Visit) -> Answer:
        """Show what patients have spent."""
        del visit
        return Page("spending.html.jinja", self._values.get())

    def _read(self) -> dict[str, Any]:
        place = self._place
        ledger = Ledger(place.ledger, Witness(place.state))
        account, proof = ledger.prove()
        limit = limit_of(account, load_site_config(place.state / SITE_FILE).privacy)
        content = view(account, limit)
        largest = max((dataset["epsilon"] or 0.0 for dataset in content["datasets"]), default=0.0)
        shown = content["datasets"][-MOST_DATASETS:][::-1]
        return {
            "ledger": str(place.ledger),
            "content": content,
            "datasets": [(dataset, bar_of(dataset["epsilon"], limit.max_epsilon, largest)) for dataset in shown],
            "hidden": len(content["datasets"]) - len(shown),
            "chart": _growth(account, limit.max_epsilon),
            "proof": proof,
            "stopped": pending_claim(place.state, ledger),
        }


def _growth(account: Account, limit: float | None) -> Any:
    """Return the largest epsilon that any round reached so far, round by round as they were written."""
    most, values = 0.0, list[float | None]()
    for item in account.rounds:
        most = max(most, item.entry.epsilon)
        values.append(most)
    return chart_of(list(range(1, len(values) + 1)), [("epsilon", values)], limit) if values else None
