"""Links that work once, sessions, and the brake on guessing."""

from __future__ import annotations

import inspect
import logging
import time

import pytest

from common.web.sessions import LINK_SECONDS, MOST_LINKS, MOST_SESSIONS, SESSION_SECONDS, Sessions
from common.web.shell import NOTE_SECONDS, WRONG_SECONDS, Shell
from common.web.visits import Role
from tests.common.web.side import SAME_ORIGIN, Clock, Place, browser, csrf_of, signed_in


def token_of(shell: Shell, role: Role = Role.LOOK) -> str:
    return shell.link(role).rpartition("token=")[2]


def test_without_a_session_nothing_is_shown(shell: Shell) -> None:
    client = browser(shell)
    for path in ("/", "/rooms/1", "/names.json"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert client.get("/events").status_code == 401
    part = client.get("/", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/sign-in")


def test_a_link_signs_in_once(shell: Shell) -> None:
    token = token_of(shell)
    first, second = browser(shell), browser(shell)
    for client, status in ((first, 303), (second, 403)):
        assert client.post("/sign-in", data={"token": token}, headers=SAME_ORIGIN).status_code == status
    assert first.get("/").status_code == 200
    assert second.get("/").status_code == 303


def test_who_signs_in_is_written_down(place: Place) -> None:
    shell = place.shell()
    token, client = token_of(shell), browser(shell)
    assert client.post("/sign-in", data={"token": "guess"}, headers=SAME_ORIGIN).status_code == 403
    assert not place.sign_ins
    client.post("/sign-in", data={"token": token}, headers=SAME_ORIGIN)
    assert place.sign_ins == [{"who": "link 1 (look)", "role": "look"}]


def test_a_log_that_cannot_be_written_keeps_nobody_out(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.log_is_broken = True
    client = signed_in(place.shell(), Role.ACT)
    assert client.get("/").status_code == 200
    assert "is not in the audit log: the log is full" in caplog.text


def test_looking_at_a_link_does_not_use_it(shell: Shell) -> None:
    token, client = token_of(shell), browser(shell)
    assert token in client.get("/sign-in", params={"token": token}).text
    assert "set-cookie" not in client.get("/sign-in", params={"token": token}).headers
    assert client.post("/sign-in", data={"token": token}, headers=SAME_ORIGIN).status_code == 303


def test_the_whole_link_may_be_pasted(shell: Shell) -> None:
    assert (
        browser(shell).post("/sign-in", data={"token": shell.link(Role.LOOK)}, headers=SAME_ORIGIN).status_code == 303
    )


def test_links_and_sessions_expire(place: Place) -> None:
    shell = place.shell()
    late, client = token_of(shell), signed_in(shell, Role.LOOK)
    place.clock.now += LINK_SECONDS
    assert browser(shell).post("/sign-in", data={"token": late}, headers=SAME_ORIGIN).status_code == 403
    assert client.get("/").status_code == 200
    place.clock.now += SESSION_SECONDS - LINK_SECONDS
    assert client.get("/").status_code == 303


def test_the_cookie_is_for_this_port_and_no_script(place: Place) -> None:
    for has_tls, name in ((False, "fedvox-8750"), (True, "__Host-fedvox-8750")):
        shell = place.shell(has_tls=has_tls)
        headers = {"Origin": f"{'https' if has_tls else 'http'}://127.0.0.1:8750"}
        answer = browser(shell).post("/sign-in", data={"token": token_of(shell)}, headers=headers)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"{name}=")
        parts = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/"} <= parts
        assert ("secure" in parts) is has_tls
        assert not any(part.startswith("domain") for part in parts)
        chosen = browser(shell).get("/sign-in?lang=de").headers["set-cookie"].lower()
        assert "httponly" in chosen and ("secure" in chosen) is has_tls


def test_whoever_guesses_is_slowed_and_keeps_nobody_out(place: Place) -> None:
    shell = place.shell()
    client, token = browser(shell), token_of(shell)
    for number in range(1, 101):
        assert client.post("/sign-in", data={"token": f"guess {number}"}, headers=SAME_ORIGIN).status_code == 403
        assert place.pauses == [WRONG_SECONDS] * number
    assert browser(shell).post("/sign-in", data={"token": token}, headers=SAME_ORIGIN).status_code == 303
    assert len(place.pauses) == 100


def test_guesses_are_told_now_and_then_without_the_token(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    client = browser(place.shell(), of="192.0.2.7")
    with caplog.at_level(logging.WARNING, "fedvox.web"):
        for _ in range(10):
            client.post("/sign-in", data={"token": "s3cret"}, headers=SAME_ORIGIN)
        place.clock.now += NOTE_SECONDS
        client.post("/sign-in", data={"token": "s3cret"}, headers=SAME_ORIGIN)
    assert [record.getMessage() for record in caplog.records] == [
        "sign-in refused, 1 since the page began: a wrong token from 192.0.2.7",
        "sign-in refused, 11 since the page began: a wrong token from 192.0.2.7",
    ]


def test_whoever_signs_in_from_another_machine_is_known_by_its_address(place: Place) -> None:
    shell = place.shell()
    for address, who in (("::ffff:127.0.0.1", "link 1 (look)"), ("2001:db8::7", "link 2 (look) at 2001:db8::7")):
        client = browser(shell, of=address)
        client.post("/sign-in", data={"token": token_of(shell)}, headers=SAME_ORIGIN)
        session = shell.sessions.find(client.cookies["fedvox-8750"])
        assert session is not None and session.who == who


def test_a_session_that_somebody_else_chose_is_none(shell: Shell) -> None:
    client = browser(shell)
    client.cookies.set("fedvox-8750", "chosen", domain="127.0.0.1")
    assert client.get("/").status_code == 303
    answer = client.post("/sign-in", data={"token": token_of(shell)}, headers=SAME_ORIGIN)
    assert answer.status_code == 303
    assert "fedvox-8750=" in answer.headers["set-cookie"] and "chosen" not in answer.headers["set-cookie"]
    assert shell.sessions.find("chosen") is None


def test_a_cookie_of_another_page_opens_nothing(place: Place) -> None:
    client, other = browser(place.shell()), signed_in(place.shell(), Role.ACT)
    client.cookies.update(other.cookies)
    assert client.get("/").status_code == 303


def test_the_clock_that_people_set_ends_no_session_and_revives_none() -> None:
    assert inspect.signature(Sessions).parameters["clock"].default is time.monotonic


def test_nothing_grows_with_links_and_sessions() -> None:
    sessions = Sessions(Clock())
    for _ in range(MOST_LINKS + MOST_SESSIONS + 10):
        sessions.new_link(Role.LOOK)
        sessions.open(Role.LOOK, "someone")
    assert len(sessions._links) == MOST_LINKS
    assert len(sessions._sessions) == MOST_SESSIONS


def test_signing_out_ends_the_session_for_good(shell: Shell) -> None:
    client = signed_in(shell, Role.LOOK)
    cookies, token = dict(client.cookies), csrf_of(client)
    assert client.post("/sign-out", data={"csrf": token}, headers=SAME_ORIGIN).status_code == 303
    client.cookies.update(cookies)
    assert client.get("/").status_code == 303


def test_whoever_may_act_invites_others(place: Place) -> None:
    shell = place.shell()
    client = signed_in(shell, Role.ACT)
    assert client.post("/links", data={"csrf": csrf_of(client), "role": "look"}, headers=SAME_ORIGIN).status_code == 303
    page = client.get("/").text
    token = page.partition("token=")[2].partition("<")[0].strip()
    assert token not in client.get("/").text
    guest = browser(shell)
    assert guest.post("/sign-in", data={"token": token}, headers=SAME_ORIGIN).status_code == 303
    refused = guest.post("/links", data={"csrf": csrf_of(guest), "role": "act"}, headers=SAME_ORIGIN)
    assert refused.status_code == 403
    (entry,) = place.entries
    assert entry[1]["action"] == "sign_in_link"
    assert token not in str(entry)
