"""Links that work once, sessions, and the brake on guessing."""

from __future__ import annotations

from common.web.sessions import LINK_SECONDS, MOST_ADDRESSES, MOST_LINKS, MOST_WRONG, SESSION_SECONDS, Sessions
from common.web.shell import Shell
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


def test_whoever_guesses_waits_a_minute(place: Place) -> None:
    shell = place.shell()
    client = browser(shell)
    for _ in range(MOST_WRONG):
        assert client.post("/sign-in", data={"token": "guess"}, headers=SAME_ORIGIN).status_code == 403
    token = token_of(shell)
    refused = client.post("/sign-in", data={"token": token}, headers=SAME_ORIGIN)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    place.clock.now += 61
    assert client.post("/sign-in", data={"token": token}, headers=SAME_ORIGIN).status_code == 303


def test_nothing_grows_with_guesses_and_links() -> None:
    sessions = Sessions(Clock())
    for number in range(MOST_ADDRESSES + 100):
        sessions.sign_in("guess", f"address {number}")
        sessions.new_link(Role.LOOK)
    assert len(sessions._wrong) == MOST_ADDRESSES
    assert len(sessions._links) == MOST_LINKS


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
