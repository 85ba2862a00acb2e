"""A person reads what is asked, and decides: through the page as through the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import client.web as client_web
from client.consent.decisions import DecisionBook
from client.consent.disclosure import as_text, document, read_request
from client.consent.policy import Policy, PolicyError
from client.consent.site_config import SITE_FILE
from client.state_folder import AUDIT_FILE
from client.web.place import Place
from common.protocol.messages import ErrorCode
from common.web.texts import load_texts
from common.web.visits import Role
from tests.client.consent.test_disclosure import write_kit
from tests.client.web.hospital import ASKED, DIGEST, do, visitor, words
from tests.common.web.gate import written
from tests.common.web.side import SAME_ORIGIN, csrf_of


def refusal(place: Place) -> ErrorCode | None:
    try:
        Policy(place.kit, place.state, place.consent).check(DIGEST)
    except PolicyError as error:
        return error.code
    return None


def test_the_page_says_what_the_command_says(place: Place) -> None:
    shown = words(visitor(place).get("/"))
    for line in as_text(document(read_request(place.kit)), 100_000).splitlines()[1:]:
        for part in line.replace("Digest: ", "").strip().removeprefix("- ").split("  "):
            assert " ".join(part.split()) in shown
    assert "not approved" in shown and "Your link lets you look." in shown


def test_decisions_on_the_page_are_those_of_the_commands(place: Place) -> None:
    client = visitor(place, Role.ACT)
    assert refusal(place) is ErrorCode.NOT_APPROVED
    assert "is approved by Dr. A (link" in do(client, "/approve", name=" Dr.  A ", digest=DIGEST, read="yes")
    assert refusal(place) is None
    assert "Paused by link" in do(client, "/pause", name="", digest=DIGEST)
    assert refusal(place) is ErrorCode.PAUSED
    do(client, "/resume", name="Dr. B", digest=DIGEST)
    assert refusal(place) is None
    assert "withdrawn" in do(client, "/withdraw", name="Dr. B", digest=DIGEST)
    assert refusal(place) is ErrorCode.WITHDRAWN


@pytest.mark.parametrize("given", [{"name": "Dr. A"}, {"name": " ", "read": "yes"}, {"name": "Dr. A", "read": "no"}])
def test_nobody_approves_without_a_name_or_by_mistake(place: Place, given: dict[str, str]) -> None:
    assert "Not done: give your name, and tick" in do(visitor(place, Role.ACT), "/approve", digest=DIGEST, **given)
    assert refusal(place) is ErrorCode.NOT_APPROVED


def test_the_log_says_who_did_what(place: Place) -> None:
    do(visitor(place, Role.ACT), "/approve", name="Dr. A", digest=DIGEST, read="yes")
    asked, approved = written(place.state / AUDIT_FILE)
    assert (asked.event, asked.details["action"]) == ("page_action", "approve")
    assert asked.details["about"] == {"name": "Dr. A", "digest": DIGEST, "read": "yes"}
    assert approved.event == "approved"
    assert approved.details["user"] == f"Dr. A ({asked.details['who']})"
    assert approved.details["account"]


def test_only_what_was_shown_is_approved(place: Place) -> None:
    client = visitor(place, Role.ACT)
    token = csrf_of(client)
    write_kit(place.kit, **ASKED, rounds=9)
    client.post("/approve", data={"csrf": token, "name": "Dr. A", "digest": DIGEST, "read": "yes"}, headers=SAME_ORIGIN)
    shown = words(client.get("/"))
    assert "Not done" in shown and "review it again" in shown and "9 rounds" in shown
    assert not DecisionBook(place.state, place.consent).read().approvals
    assert [entry.event for entry in written(place.state / AUDIT_FILE)] == ["page_action", "page_action_failed"]


def test_what_the_site_file_does_not_allow_is_shown_and_not_approved(place: Place) -> None:
    (place.state / SITE_FILE).write_text("limits: {max_rounds: 2}\n", encoding="utf-8")
    client = visitor(place, Role.ACT)
    assert "3 rounds are more than limits.max_rounds (2)" in words(client.get("/"))
    assert "does not allow this federation" in do(client, "/approve", name="Dr. A", digest=DIGEST, read="yes")
    assert refusal(place) is ErrorCode.OUTSIDE_LIMITS


def test_who_may_look_cannot_decide(place: Place) -> None:
    client = visitor(place)
    form = {"csrf": csrf_of(client), "name": "x", "digest": DIGEST}
    for action in ("/approve", "/pause", "/resume", "/withdraw"):
        assert client.post(action, data=form, headers=SAME_ORIGIN).status_code == 403
    assert refusal(place) is ErrorCode.NOT_APPROVED


def test_stopping_works_with_a_log_that_cannot_be_written_and_approving_does_not(place: Place) -> None:
    client = visitor(place, Role.ACT)
    do(client, "/approve", name="Dr. A", digest=DIGEST, read="yes")
    log = place.state / AUDIT_FILE
    log.write_bytes(log.read_bytes().replace(b'"approve"', b'"improve"'))
    assert "could not be written into the audit log" in do(client, "/pause", name="", digest=DIGEST)
    assert DecisionBook(place.state, place.consent).read().paused
    assert "Not done" in do(client, "/resume", name="", digest=DIGEST)
    assert DecisionBook(place.state, place.consent).read().paused


@pytest.mark.parametrize("damage", ["federation.yaml", "plan.json", "kit.yaml"])
def test_a_damaged_kit_is_named(place: Place, damage: str) -> None:
    client = visitor(place)
    assert client.get("/").status_code == 200
    (place.kit / damage).write_bytes(b"name: other\n")
    answer = client.get("/")
    assert answer.status_code == 503
    assert damage in words(answer)
    assert client.get("/sent").status_code == 200


def test_texts_of_the_federation_and_of_people_are_text(place: Place) -> None:
    client = visitor(place, Role.ACT)
    do(client, "/approve", name='<img src=x onerror="x">\x1b[31m', digest=DIGEST, read="yes")
    for page in (client.get("/").text, client.get("/sent").text, client.get("/?lang=de").text):
        assert "<img" not in page and "<b>liver" not in page and "\x1b" not in page
    german = load_texts([Path(client_web.__file__).parent / "texts"])["de"]
    assert german("decision.in_english") in client.get("/").text
