"""The first page: what the federation asks, what was decided, and the buttons to decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from client.consent.decisions import Decision, DecisionBook
from client.consent.disclosure import ConsentError, Request, document, read_request, readable_size, sections
from client.consent.site_config import SITE_FILE
from client.consent.standing import Standing, agree, standing_of
from client.state_folder import APPROVALS_FILE
from client.web.place import Place
from common.audit import AuditError
from common.config.chosen import CHOSEN_FILE
from common.config.kit import AGREED_FILES, KIT_FILE
from common.web.marks import Remembered, mark_of
from common.web.visits import Answer, Notice, Page, Visit

STOPS = ("pause", "withdraw")
"""Actions that are done even if the log cannot be written."""
FIELDS = ("name", "digest", "read")
READ = "yes"
"""What the form says if the person has ticked that they have read the document."""
LONGEST_NAME = 100
_KIT_FILES = (KIT_FILE, *AGREED_FILES, CHOSEN_FILE)


class DecisionPages:
    """Shows a federation's document, and records decisions through the functions of the commands."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.files = [place.kit / name for name in _KIT_FILES]
        self.files += [place.state / name for name in (APPROVALS_FILE, SITE_FILE)]
        self._asked = Remembered(partial(mark_of, *self.files[: len(_KIT_FILES)]), self._read)

    def page(self, visit: Visit) -> Answer:
        """Show what is asked, and what holds."""
        del visit
        place = self._place
        request, content = self._asked.get()
        standing = standing_of(request, place.kit, place.state, place.consent)
        values = {
            "content": content,
            "short": _in_short(content),
            "sections": sections(content),
            "standing": standing,
            "state": state_of(standing),
            "data_terms": list(standing.data_terms()),
            "longest_name": LONGEST_NAME,
        }
        return Page("decision.html.jinja", values)

    def request(self) -> Request:
        """Return what the kit asks for."""
        return self._asked.get()[0]

    def approve(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Approve what the form's digest names, which is what the page showed."""
        place = self._place
        if not form["name"].strip() or form["read"] != READ:
            raise ConsentError("give your name, and tick that you have read the document")
        agreed = agree(place.kit, place.state, place.consent, _name(visit, form), form["digest"])
        key = "decision.approved_weaker" if agreed.weaker else "decision.approved"
        values = {"federation": agreed.approval.federation, "user": agreed.approval.user}
        return Notice(key, values | {"weaker": ", ".join(agreed.weaker)})

    def pause(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Accept no more tasks."""
        return self._stop(self._book().pause, "decision.paused", visit, form)

    def withdraw(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Revoke every approval."""
        return self._stop(self._book().withdraw, "decision.withdrawn", visit, form)

    def resume(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """End a pause."""
        decision = self._book().resume(_name(visit, form))
        return Notice("decision.resumed", {"user": decision.user})

    def _stop(
        self, decide: Callable[[str | None], Decision], key: str, visit: Visit, form: Mapping[str, str]
    ) -> Notice:
        user = _name(visit, form)
        try:
            return Notice(key, {"user": decide(user).user})
        except AuditError as error:
            return Notice("decision.stopped_unlogged", {"user": user, "why": str(error)}, wrong=True)

    def _book(self) -> DecisionBook:
        return DecisionBook(self._place.state, self._place.consent)

    def _read(self) -> tuple[Request, dict[str, Any]]:
        request = read_request(self._place.kit)
        return request, document(request)


def state_of(standing: Standing) -> str:
    """Return in a word, which is a key of the texts, what the site does with a task now."""
    decisions, approval = standing.decisions, standing.approval
    found = (
        ("withdrawn", decisions.withdrawn),
        ("paused", decisions.paused or standing.site.paused),
        ("outside", standing.violations),
        ("changed", standing.changed),
        ("approved", approval is not None and not approval.automatic),
        ("automatic", standing.is_automatic),
    )
    return next((word for word, holds in found if holds), "open")


def _in_short(content: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the document in a few sentences: keys of the texts, with their values."""
    privacy, data = content["privacy"], content["data"]
    is_private = "epsilon" in privacy
    spent = {name: f"{privacy[name]:g}" for name in ("epsilon", "delta")} if is_private else {}
    return [
        ("learned", {"labels": ", ".join(data["labels"].values()), "modality": data["modality"]}),
        ("work", {"count": content["work"]["rounds"]}),
        ("leaves", {"size": readable_size(content["sent_back"]["update"]["bytes_per_round"])}),
        ("never", {}),
        ("private" if is_private else "open", spent),
        ("where", {"server": content["server"]}),
        ("stop", {}),
    ]


def _name(visit: Visit, form: Mapping[str, str]) -> str:
    """Return who decides: the name that they gave and their session, which the log has beside the account."""
    given = " ".join(form["name"].split())[:LONGEST_NAME]
    return f"{given} ({visit.session.who})" if given else visit.session.who
