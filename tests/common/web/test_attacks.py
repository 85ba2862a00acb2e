"""What other pages, other people and odd requests try; none of it works."""

from __future__ import annotations

import pytest

from common.web.forms import MOST_FIELDS
from common.web.guard import LONGEST_PATH, MOST_BODY_BYTES
from common.web.shell import Shell
from common.web.visits import MOST_TAKEN, Forms, Role
from tests.common.web.side import HOST, SAME_ORIGIN, Place, browser, csrf_of, signed_in

RENAME = "/rooms/1/rename"


def test_an_action_is_done_and_written_down_with_who_did_it(place: Place) -> None:
    client = signed_in(place.shell(), Role.ACT)
    answer = client.post(RENAME, data={"csrf": csrf_of(client), "name": "north"}, headers=SAME_ORIGIN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/rooms/1")
    assert place.name == "north"
    about = {"room": 1, "name": "north"}
    (entry,) = place.entries
    assert entry[0] == "page_action"
    assert entry[1]["about"] == about
    assert "(act)" in entry[1]["who"]


def test_an_action_that_cannot_be_written_down_is_not_done(place: Place) -> None:
    client = signed_in(place.shell(), Role.ACT)
    place.log_is_broken = True
    client.post(RENAME, data={"csrf": csrf_of(client), "name": "north"}, headers=SAME_ORIGIN)
    assert place.name == "room"
    assert "the log is full" in client.get("/").text


def test_an_action_that_fails_says_why_once(place: Place) -> None:
    client = signed_in(place.shell(), Role.ACT)
    client.post(RENAME, data={"csrf": csrf_of(client), "name": ""}, headers=SAME_ORIGIN)
    assert [event for event, _ in place.entries] == ["page_action", "page_action_failed"]
    assert "a room needs a name" in client.get("/").text
    assert "a room needs a name" not in client.get("/").text


def test_forged_secrets_of_forms_and_those_of_other_sessions_are_refused(place: Place) -> None:
    shell = place.shell()
    client, other = signed_in(shell, Role.ACT), signed_in(shell, Role.ACT)
    old = csrf_of(client)
    client.post("/sign-out", data={"csrf": csrf_of(client)}, headers=SAME_ORIGIN)
    client = signed_in(shell, Role.ACT)
    number, _, seal = csrf_of(client).partition(".")
    forged = ("", "guess", ".", old, csrf_of(other), f"{number}.{seal}x", f"{int(number) + 1}.{seal}", f"-1.{seal}")
    for token in forged:
        assert client.post(RENAME, data={"csrf": token, "name": "x"}, headers=SAME_ORIGIN).status_code == 403
    assert client.post(RENAME, data={"name": "x"}, headers=SAME_ORIGIN).status_code == 403
    assert client.post("/sign-out", data={"csrf": "guess"}, headers=SAME_ORIGIN).status_code == 403
    assert place.name == "room"
    assert not place.entries


def test_a_form_that_is_sent_again_changes_nothing_and_says_so(place: Place) -> None:
    shell = place.shell()
    client = signed_in(shell, Role.ACT)
    forms = [{"csrf": csrf_of(client), "name": name} for name in ("north", "south")]
    for form in (forms[1], forms[0], forms[1], forms[0]):
        client.get("/")
        assert client.post(RENAME, data=form, headers=SAME_ORIGIN).status_code == 303
    assert place.name == "north", "each once, in any order"
    assert len(place.entries) == 2
    assert "was sent before, and nothing was done again" in client.get("/").text


def test_forms_that_were_sent_are_few_in_memory_and_never_taken_again() -> None:
    forms = Forms()
    tokens = [forms.new() for _ in range(3 * MOST_TAKEN)]
    assert all(forms.is_ours(token) and forms.take(token) for token in tokens[::2])
    assert not any(forms.take(token) for token in tokens[::2])
    assert len(forms._taken) == MOST_TAKEN
    assert not forms.take(tokens[1]), "older than all that are remembered"
    assert forms.take(forms.new())


def test_who_may_only_look_cannot_act(place: Place) -> None:
    shell = place.shell()
    looks, acts = signed_in(shell, Role.LOOK), signed_in(shell, Role.ACT)
    for token in (csrf_of(looks), csrf_of(acts)):
        assert looks.post(RENAME, data={"csrf": token, "name": "x"}, headers=SAME_ORIGIN).status_code == 403
    assert place.name == "room"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8751"},
        {"Origin": f"https://{HOST}"},
        {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "cross-site"},
        {"Origin": f"http://{HOST}.evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_what_other_pages_send_is_refused(place: Place, headers: dict[str, str]) -> None:
    client = signed_in(place.shell(), Role.ACT)
    answer = client.post(RENAME, data={"csrf": csrf_of(client), "name": "x"}, headers=headers)
    assert answer.status_code == 403
    assert place.name == "room"


def test_a_form_of_a_browser_that_hides_where_it_comes_from_is_ours(place: Place) -> None:
    client = signed_in(place.shell(), Role.ACT)
    headers = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}
    assert client.post(RENAME, data={"csrf": csrf_of(client), "name": "x"}, headers=headers).status_code == 303


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8750", "127.0.0.1", "127.0.0.1:8751", "", f"{HOST}."])
def test_other_names_for_this_machine_are_refused(shell: Shell, host: str) -> None:
    client = signed_in(shell, Role.LOOK)
    for path in ("/", "/sign-in", "/static/style.css", "/events"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert "room" not in answer.text


def test_every_answer_has_the_headers(shell: Shell) -> None:
    client = signed_in(shell, Role.LOOK)
    answers = [client.get(path) for path in ("/", "/nowhere", "/names.json", "/sign-in", "/static/style.css")]
    answers += [client.get("/", headers={"Host": "evil"}), client.put("/"), client.post("/sign-in")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        kept = "immutable" in answer.headers["cache-control"]
        assert kept if "/static/" in str(answer.url) else answer.headers["cache-control"] == "no-store"


def test_names_are_text_whatever_they_hold(place: Place) -> None:
    client = signed_in(place.shell(), Role.ACT)
    for name in ("<script>alert(1)</script>", '" onload="x', "\x1b[31mred\x07", "\u202eevil", "{{ 7 * 7 }}", "{t}"):
        client.post(RENAME, data={"csrf": csrf_of(client), "name": name}, headers=SAME_ORIGIN)
        assert place.name == name
        page = client.get("/").text
        assert "<script>alert" not in page
        assert 'onload="x' not in page.replace("&#34;", "'")
        assert not {"\x1b", "\x07", "\u202e"} & set(page)
        assert "49" not in page.partition("<h1>")[2].partition("</h1>")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2Fshell.py",
        "/static/../shell.py",
        "/static/%2e%2e/%2e%2e/errors.py",
        "/static/manifest.json",
        "/static/licences",
        "/static//etc/passwd",
        "/rooms/..%2F..%2Fetc",
        "/rooms/2",
        "/rooms/-1",
        "/rooms/1%00",
        "/rooms/99999999999999999999999999",
        "/rooms/" + "9" * (LONGEST_PATH - 10),
        "/rooms/%31%2e",
        "/rooms/1%252f..",
        "/rooms/1\\..\\..",
        "/static/style.css%00.txt",
        "/static/%2fetc%2fpasswd",
        "/static/%252e%252e%252fshell.py",
        "/static/..\\shell.py",
    ],
)
def test_paths_lead_nowhere_else(shell: Shell, path: str) -> None:
    answer = signed_in(shell, Role.ACT).get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_a_language_is_only_ever_one_of_ours(shell: Shell) -> None:
    client = signed_in(shell, Role.LOOK)
    for odd in ("../../en", "xx", "de\r\nSet-Cookie: a=b", "de" * 5000):
        answer = client.get("/", params={"lang": odd}, headers={"Accept-Language": "en" if len(odd) < 99 else odd})
        assert answer.status_code == 200
        assert 'lang="en"' in answer.text
        assert "set-cookie" not in answer.headers


def test_forms_are_bounded_and_have_the_fields_that_were_asked_for(place: Place) -> None:
    shell = place.shell()
    client = signed_in(shell, Role.ACT)
    token = csrf_of(client)
    large = {"csrf": token, "name": "x" * MOST_BODY_BYTES}
    assert client.post(RENAME, data=large, headers=SAME_ORIGIN).status_code == 413
    pieces = client.post(
        RENAME,
        content=iter([b"csrf=", b"x" * MOST_BODY_BYTES]),
        headers=SAME_ORIGIN | {"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert pieces.status_code == 413
    for odd in (
        f"csrf={token}&name=a&name=b",
        f"csrf={token}&name=a&more=b",
        f"csrf={token}" + "&a=b" * MOST_FIELDS,
        "%ff",
    ):
        headers = SAME_ORIGIN | {"Content-Type": "application/x-www-form-urlencoded"}
        assert client.post(RENAME, content=odd, headers=headers).status_code == 400
    assert client.post(RENAME, json={"csrf": token, "name": "x"}, headers=SAME_ORIGIN).status_code == 415
    assert browser(shell).request("TRACE", "/").status_code == 405
    assert place.name == "room"


def test_a_page_that_cannot_be_shown_says_why(place: Place) -> None:
    client = signed_in(place.shell(), Role.LOOK)
    place.name = "broken"
    answer = client.get("/")
    assert answer.status_code == 503
    assert "rooms.json: cannot be read" in answer.text


def test_a_path_without_end_is_refused_before_it_is_read(shell: Shell) -> None:
    for client in (browser(shell), signed_in(shell, Role.ACT)):
        assert client.get("/rooms/" + "9" * 5000).status_code == 414


def test_texts_in_json_are_text_whatever_they_hold(place: Place) -> None:
    client = signed_in(place.shell(), Role.LOOK)
    place.name = "\ud800\u202e\x1b<script>"
    assert client.get("/names.json").json() == ["\\ud800\\u202e\\x1b<script>"]
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "OPTIONS", "TRACE", "PATCH", "DELETE", "CONNECT"])
def test_methods_that_a_page_does_not_have_do_nothing(place: Place, method: str) -> None:
    client = signed_in(place.shell(), Role.ACT)
    override = {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST"}
    for path in (RENAME, "/events"):
        answer = client.request(method, f"{path}?_method=POST&name=x", headers=SAME_ORIGIN | override)
        assert answer.status_code in (403, 405, 415), (path, answer.status_code)
    assert place.name == "room"
    assert not place.entries
