"""Signing in through a real provider, which the test starts, and what is refused on the way."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import RSAKey
from oidc_provider_mock import User, run_server_in_thread
from starlette.testclient import TestClient

from common.errors import ConfigError
from common.web.openid import MOST_USED, PENDING_SECONDS, OpenId, OpenIdError, OpenIdSettings, read_settings
from common.web.shell import Shell
from common.web.visits import Role
from tests.common.web.hostile_provider import HostileProvider, hostile_provider
from tests.common.web.side import HOST, Clock, Place, browser

CALLBACK = f"http://{HOST}/openid/callback"
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
    shell.openid = OpenId(settings, place.clock)
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


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileProvider]:
    with hostile_provider() as provider:
        yield provider


def finished(provider: HostileProvider, query: dict[str, str] | None = None, **claims: Any) -> tuple[Role, str]:
    """Sign in through a hostile provider, whose ID token has these claims."""
    openid = OpenId(OpenIdSettings(issuer=provider.issuer, client_id="fedvox", act=["acts", "['acts']"], look=[]))
    to, secret = openid.begin(CALLBACK)
    asked = {key: value[0] for key, value in parse_qs(urlsplit(to).query).items()}
    assert (asked["redirect_uri"], asked["code_challenge_method"]) == (CALLBACK, "S256")
    provider.claims = {"nonce": asked["nonce"]} | claims
    return openid.finish(CALLBACK, secret, {"code": "c", "state": asked["state"]} | (query or {}))


def test_an_honest_answer_signs_in_and_clocks_may_differ_a_little(hostile: HostileProvider) -> None:
    role, who = finished(hostile, exp=int(time.time()) - 30, iat=int(time.time()) + 30, azp="fedvox")
    assert (role, who) == (Role.ACT, f"acts (act) of {hostile.issuer}")
    assert finished(hostile, {"iss": hostile.issuer}, aud=["other", "fedvox"], azp="fedvox")[0] is Role.ACT


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://id.example.org"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"aud": ["other", "fedvox"]},
        {"azp": "other"},
        {"nonce": "another"},
        {"nonce": None},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"exp": "never"},
        {"iat": 99_999_999_999},
        {"nbf": 99_999_999_999},
        {"sub": ["acts"]},
        {"sub": None},
        {"sub": "stranger"},
    ],
    ids=str,
)
def test_an_answer_for_somebody_else_or_another_time_is_refused(
    hostile: HostileProvider, claims: dict[str, Any]
) -> None:
    with pytest.raises(OpenIdError):
        finished(hostile, **claims)


def test_another_signature_another_provider_and_open_lines_are_refused(hostile: HostileProvider) -> None:
    hostile.signs_with = RSAKey.generate_key(2048)
    with pytest.raises(OpenIdError, match="BadSignature"):
        finished(hostile)
    hostile.signs_with = hostile.key
    with pytest.raises(OpenIdError, match="another provider"):
        finished(hostile, {"iss": "https://id.example.org"})
    for addresses in ({"token_endpoint": "http://id.example.org/token"}, {"jwks_uri": None}, {"issuer": "https://x"}):
        hostile.addresses = addresses
        with pytest.raises(OpenIdError):
            finished(hostile)
    hostile.addresses = {}


def test_whoever_begins_often_disturbs_nobody(hostile: HostileProvider) -> None:
    openid = OpenId(OpenIdSettings(issuer=hostile.issuer, client_id="fedvox", act=["acts"], look=[]), Clock())
    to, secret = openid.begin(CALLBACK)
    hostile.asked.clear()
    for _ in range(1000):
        openid.begin(CALLBACK)
    assert not hostile.asked, "the provider is not asked again for each"
    asked = {key: value[0] for key, value in parse_qs(urlsplit(to).query).items()}
    hostile.claims = {"nonce": asked["nonce"]}
    assert openid.finish(CALLBACK, secret, asked | {"code": "c"})[0] is Role.ACT
    with pytest.raises(OpenIdError, match="not begun in this browser"):
        openid.finish(CALLBACK, secret, asked | {"code": "c"})
    openid._used = dict.fromkeys(map(str, range(MOST_USED)))
    _, other = openid.begin(CALLBACK)
    openid._use(other, openid._derived("state", other))
    assert len(openid._used) == MOST_USED


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("issuer: http://id.example.org\nclient_id: x\n", "begins with https"),
        ("issuer: https://id.example.org\n", "client_id: is missing; add it"),
        ("issuer: https://id.example.org\nclient_id: x\nclaim: name\n", "claim: must be 'sub' or 'email'"),
        ("issuer: https://id.example.org\nclient_id: x\nlooks: [a]\n", "looks: unknown key; did you mean look?"),
        ("issuer: 'https://[id'\nclient_id: x\n", "begins with https"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        read_settings(file)
    with pytest.raises(ConfigError, match="does not exist"):
        read_settings(tmp_path / "missing.yaml")


def test_a_secret_that_cannot_be_read_is_told_before_anybody_signs_in(tmp_path: Path) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text("issuer: https://id.example.org\nclient_id: x\nsecret_file: secret\n", encoding="utf-8")
    for content, problem in ((None, "secret: cannot be read"), (b" \n", "is empty"), (b"\xff", "not text")):
        if content is not None:
            (tmp_path / "secret").write_bytes(content)
        with pytest.raises(ConfigError, match=problem):
            OpenId(read_settings(file))
    (tmp_path / "secret").write_text("s3cret\n", encoding="utf-8")
    OpenId(read_settings(file))


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "authlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedvox\[oidc\]'"):
        read_settings(tmp_path / "oidc.yaml")
