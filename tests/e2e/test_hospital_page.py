"""``fedvox-client start --page`` beside a real federation: watching, pausing and looking back."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import Client

from client.consent.policy import SENT_EVENT
from client.state_folder import AUDIT_FILE
from client.web.decision import READ
from common.audit import read_entries
from common.system.supervisor import free_port
from tests.e2e.network_federation import CLIENT, Federation, federation, wait_for

pytestmark = pytest.mark.network
SITE = "north"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Federation]:
    """A federation of one site, with rounds that are long enough to be watched."""
    settings = ("strategy.min_sites=1", "training.local_steps=150", "rounds=2")
    with federation(tmp_path, (SITE,), settings) as made:
        yield made


class Person:
    """Who uses the page that a site serves."""

    def __init__(self, made: Federation, port: int) -> None:
        address = f"http://127.0.0.1:{port}"
        self._client = Client(base_url=address, headers={"Origin": address}, timeout=60, follow_redirects=True)
        token = re.search(r"act: \S+token=(\S+)", made.log(SITE))
        assert token is not None
        self._client.post("/sign-in", data={"token": token[1]})

    def read(self, path: str) -> str:
        """The words of a page."""
        text = self._client.get(path).text.partition("<main")[2]
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())

    def do(self, action: str, path: str, **fields: str) -> None:
        csrf = re.search(r'name="csrf" value="([^"]+)"', self._client.get(path).text)
        assert csrf is not None
        assert self._client.post(action, data={"csrf": csrf[1]} | fields).status_code == 200


def test_a_person_watches_pauses_and_looks_back(made: Federation) -> None:
    made.start_server()
    wait_for(made.is_up, 120, "a server that waits for sites")
    port = free_port()
    kit, cache = str(made.kits / "sites" / SITE), str(made.folder / "cache")
    command = ["start", "--kit", kit, "--data", str(made.data(SITE)), "--cache", cache, "--page", f"127.0.0.1:{port}"]
    made._start(SITE, [*CLIENT, *command])
    wait_for(lambda: "act: " in made.log(SITE), 120, "a link")
    person = Person(made, port)
    asked = person.read("/")
    assert "not approved" in asked
    digest = re.search(r"\b[0-9a-f]{64}\b", asked.partition("Your decision")[2])
    assert digest is not None
    person.do("/approve", "/", name="Dr. E2E", digest=digest[0], read=READ)
    assert "Approved by Dr. E2E (link" in person.read("/")

    wait_for(lambda: re.search(r"Round 1: step \d+ of 150\. Loss \d", person.read("/live")), 120, "a step of a round")
    person.do("/pause", "/", name="Dr. E2E")
    assert "Paused by Dr. E2E" in person.read("/")
    person.do("/resume", "/", name="Dr. E2E")
    made.finish(240)

    assert "runner.log" in person.read("/live")
    sent = person.read("/sent")
    assert "All hashes are right" in sent
    log = read_entries(made.state(SITE).path / AUDIT_FILE)
    updates = [entry.details["update"] for entry in log if entry.event == SENT_EVENT and entry.details.get("update")]
    assert len(updates) == 2 and all(update in sent for update in updates)

    person.do("/scans/find", "/scans")
    wait_for(lambda: "At work" not in person.read("/scans"), 120, "the list of scans")
    person.do("/scans/0/segment", "/scans/0")
    wait_for(lambda: "Dice of" in person.read("/scans/0"), 120, "a segmented scan")
