"""Signing in through a real provider, which the test starts, and what is refused on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from oidc_provider_mock import User, run_server_in_thread
from starlette.testclient import TestClient

from common.errors import ConfigError
from common.web.openid import MOST_PENDING, PENDING_SECONDS, OpenId, OpenIdSettings, read_settings
from common.web.shell import Shell
from tests.common.web.side import HOST, Clock, Place, browser

PEOPLE = {"acts": True, "looks": True, "stranger": True, "unverified": False}


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    people = [
        User(sub=name, claims={"email": f"{name}@example.org", "email_verified": verified})
        for name, verified in PEOPLE.items()
    ]
    with run_server_in_thread(user_claims=people) as server:
        yield f"http://localhost:{server.server_port}"


def shell_with(place: Place, issuer: str, claim: str = "sub") -> Shell:
    end = "@example.org" if claim == "email" else ""
    act, look = [f"acts{end}"], [f"looks{end}", f"unverified{end}"]
    (place.folder / "secret").write_text("s3cret\n", encoding="utf-8")
    names = {"claim": claim, "act": act, "look": look}
    settings = OpenIdSettings(issuer=issuer, client_id="fedvox", secret_file=place.folder / "secret", **names)
    shell = place.shell()
    shell.openid = OpenId(settings, shell.address.url, place.clock)
    return shell


def sent_back(client: TestClient, person: str) -> dict[str, str]:
    """Begin, sign in at the provider, and return with what it sends the browser back."""
    to = client.get("/openid").headers["location"]
    answer = httpx.post(to, data={"sub": person})
    assert answer.headers["location"].startswith(f"http://{HOST}/openid/callback?")
    return {key: value[0] for key, value in parse_qs(urlsplit(answer.headers["location"]).query).items()}


@pytest.mark.parametrize(("claim", "person", "role"), [("sub", "acts", "act"), ("email", "looks", "look")])
def test_whoever_is_named_signs_in(place: Place, issuer: str, claim: str, person: str, role: str) -> None:
    shell = shell_with(place, issuer, claim)
    client = browser(shell)
    assert 'href="/openid"' in client.get("/sign-in").text
    done = client.get("/openid/callback", params=sent_back(client, person))
    assert done.status_code == 200
    assert re.search("fedvox-8750=[^;]+;.*samesite=strict", done.headers["set-cookie"], re.IGNORECASE)
    assert client.get("/").status_code == 200
    (session,) = shell.sessions._sessions.values()
    assert session.role == role
    assert session.who == f"{person}{'@example.org' if claim == 'email' else ''} ({role}) of {issuer}"


def test_whoever_is_not_named_or_not_verified_is_refused(place: Place, issuer: str) -> None:
    shell = shell_with(place, issuer, "email")
    for person in ("stranger", "unverified"):
        client = browser(shell)
        assert client.get("/openid/callback", params=sent_back(client, person)).status_code == 403
        assert client.get("/").status_code == 303


def test_what_was_not_begun_here_or_was_used_is_refused(place: Place, issuer: str) -> None:
    shell = shell_with(place, issuer)
    client, other = browser(shell), browser(shell)
    answer = sent_back(client, "acts")
    sent_back(other, "acts")
    assert other.get("/openid/callback", params=answer).status_code == 403
    assert browser(shell).get("/openid/callback", params=answer).status_code == 403
    assert client.get("/openid/callback", params=answer).status_code == 200
    late = browser(shell)
    assert late.get("/openid/callback", params=answer).status_code == 403
    old = sent_back(late, "acts")
    place.clock.now += PENDING_SECONDS + 1
    assert late.get("/openid/callback", params=old).status_code == 403
    forged = browser(shell)
    assert forged.get("/openid/callback", params=sent_back(forged, "acts") | {"code": "guess"}).status_code == 403


def test_without_a_provider_there_is_no_such_page(place: Place) -> None:
    client = browser(place.shell())
    for path in ("/openid", "/openid/callback"):
        assert client.get(path).status_code == 404
    assert "/openid" not in client.get("/sign-in").text


def test_a_provider_that_does_not_answer_signs_nobody_in(place: Place, issuer: str) -> None:
    for wrong in ("http://localhost:1", f"{issuer}/"):
        assert browser(shell_with(place, wrong)).get("/openid").status_code == 403


def test_what_was_begun_does_not_pile_up(issuer: str) -> None:
    settings = OpenIdSettings(issuer=issuer, client_id="fedvox", act=[], look=[])
    openid = OpenId(settings, f"http://{HOST}", Clock())
    openid._pending = dict.fromkeys(map(str, range(MOST_PENDING)), None)
    openid.begin()
    assert len(openid._pending) == MOST_PENDING


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("issuer: http://id.example.org\nclient_id: x\n", "begins with https"),
        ("issuer: https://id.example.org\n", "client_id"),
        ("issuer: https://id.example.org\nclient_id: x\nclaim: name\n", "claim"),
        ("issuer: https://id.example.org\nclient_id: x\nadmins: [a]\n", "admins"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        read_settings(file)
    with pytest.raises(ConfigError, match="does not exist"):
        read_settings(tmp_path / "missing.yaml")
