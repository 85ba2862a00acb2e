"""Knocks at every route of a side, as its own table lists them: one that lets the wrong people in is found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from starlette.routing import Route
from starlette.testclient import TestClient

from common.audit import Entry, read_entries
from common.web.shell import SIGN_IN, Shell
from common.web.visits import Role
from tests.common.web.side import SAME_ORIGIN, browser, signed_in

FOR_STRANGERS = {"/static/{name}", SIGN_IN, "/openid", "/openid/callback"}
"""All that somebody sees who has not signed in."""
ODD = (
    "%2e%2e",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%252e%252e%252fstate.json",
    "..\\..\\state.json",
    "%5c..%5cstate.json",
    "%00",
    "0%00",
    "0%0d%0aX-Odd:%201",
    "%2fetc%2fpasswd",
    "file:%2f%2f%2fetc%2fpasswd",
    "-1",
    "1e9",
    "%EF%BC%91",
    "%ff",
    "9" * 400,
    "9" * 5000,
    "%1b%5b2J",
    "%3Cscript%3E",
)
"""For a parameter of a path; none of them is one of a page."""


def written(log: Path) -> list[Entry]:
    """All that an audit log says, but for who signed in."""
    return [entry for entry in read_entries(log) if entry.event != "page_sign_in"] if log.exists() else []


def routes(shell: Shell, method: str) -> list[str]:
    """The patterns of all routes that answer a method."""
    table: list[Route] = cast(Any, shell.app)._app.routes
    assert all(isinstance(route, Route) and route.methods for route in table)
    return [route.path for route in table if method in (route.methods or ())]


def filled(pattern: str, value: str | None = None) -> str:
    """A path of a pattern: with a value for every parameter, or with ones that might be there."""
    path = re.sub(r"\{\w+:int\}", lambda _: value or "0", pattern)
    return re.sub(r"\{\w+\}", lambda _: value or "x", path)


def fields_of(shell: Shell, pattern: str) -> dict[str, str]:
    """Values for the form of an action."""
    action = shell._side.actions.get(pattern)
    return dict.fromkeys(action.fields if action else ("role",), "x")


def check_that_strangers_see_nothing(shell: Shell) -> None:
    """Whoever has not signed in, or with another page's cookie, is sent to the page for that."""
    stranger = browser(shell)
    stranger.cookies.set(shell.address.cookie, "guess", domain="127.0.0.1")
    for pattern in {*routes(shell, "GET")} - FOR_STRANGERS:
        answer = stranger.get(filled(pattern))
        assert (answer.status_code, answer.headers.get("location")) in ((303, SIGN_IN), (401, None)), pattern
        assert not answer.content, pattern


def check_that_only_those_who_may_act_do(shell: Shell, written: Callable[[], list[Any]]) -> None:
    """No action without a session, the role, a form of one's own, and our own page as its origin."""
    looks, acts = signed_in(shell, Role.LOOK), signed_in(shell, Role.ACT)
    before = len(written())
    for pattern in actions(shell):
        path, fields = filled(pattern), fields_of(shell, pattern)

        def post(client: TestClient, csrf: str, path: str = path, fields: Any = fields, **headers: str) -> int:
            return int(client.post(path, data=fields | {"csrf": csrf}, headers=SAME_ORIGIN | headers).status_code)

        assert post(browser(shell), token(shell, acts)) == 303, pattern
        assert post(looks, token(shell, looks)) == 403, pattern
        assert post(looks, token(shell, acts)) == 403, pattern
        assert post(acts, token(shell, looks)) == 403, pattern
        assert post(acts, "") == 403, pattern
        assert post(acts, token(shell, acts), Origin="http://evil.example") == 403, pattern
        assert post(acts, token(shell, acts), Host="evil.example") == 421, pattern
        assert acts.get(path).status_code in (404, 405), pattern
    assert len(written()) == before


def check_that_every_action_is_written_down(shell: Shell, written: Callable[[], list[Any]]) -> None:
    """With who did it, even if it then cannot be done; and not twice if its form is sent twice."""
    acts = signed_in(shell, Role.ACT)
    for pattern in actions(shell):
        form = fields_of(shell, pattern) | {"csrf": token(shell, acts)}
        before = len(written())
        assert acts.post(filled(pattern), data=form, headers=SAME_ORIGIN).status_code in (303, 404), pattern
        entries = written()[before:]
        assert entries and entries[0].event == "page_action", pattern
        assert re.search(r"link \d+ \(act\)", entries[0].details["who"]), pattern
        acts.post(filled(pattern), data=form, headers=SAME_ORIGIN)
        assert len(written()) == before + len(entries), pattern


def check_that_every_answer_keeps_the_policy(shell: Shell) -> None:
    """Headers on every answer, and no page with a script or style inside, or from elsewhere."""
    for client in (browser(shell), signed_in(shell, Role.ACT)):
        for pattern in {*routes(shell, "GET")} - {"/events"}:
            answer = client.get(filled(pattern))
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store", pattern
            if answer.headers.get("content-type", "").startswith("text/html"):
                assert not re.search(r"<style|<script>|\sstyle=|\son[a-z]+=|javascript:", answer.text), pattern
                assert not re.search(r'(?:src|href|action)="(?:[a-z]+:|//)', answer.text), pattern


def check_that_no_path_leads_elsewhere(shell: Shell) -> None:
    """Odd values of every parameter of every path are not found, and no page fails over an odd query."""
    acts = signed_in(shell, Role.ACT)
    for pattern in {*routes(shell, "GET")}:
        if "{" in pattern:
            for odd in ODD:
                assert acts.get(filled(pattern, odd)).status_code in (404, 414), (pattern, odd)
        elif pattern not in {*FOR_STRANGERS, "/events"}:
            for odd in ODD[:-4]:
                query = "&".join(f"{name}={odd}" for name in ("page", "seen", "lang", "token", "run", "site"))
                assert acts.get(f"{pattern}?{query}").status_code < 400, (pattern, odd)


def actions(shell: Shell) -> Iterator[str]:
    """The patterns of all actions."""
    return (pattern for pattern in routes(shell, "POST") if pattern not in (SIGN_IN, "/sign-out"))


def token(shell: Shell, client: TestClient) -> str:
    """The token of a form of a client's session."""
    session = shell.sessions.find(client.cookies[shell.address.cookie])
    assert session is not None
    return session.forms.new()
