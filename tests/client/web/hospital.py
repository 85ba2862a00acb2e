"""A browser at a hospital's page, without a network."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from httpx import Response
from starlette.testclient import TestClient

from client.state_folder import StateFolder, default_ledger
from client.web.jobs import Jobs
from client.web.place import Place
from client.web.side import hospital_side
from common.web.shell import Address, Shell
from common.web.visits import Role
from tests import tiny
from tests.client.consent.test_disclosure import VALUES, write_kit
from tests.common.web.side import HOST, SAME_ORIGIN, csrf_of, signed_in

ASKED: dict[str, Any] = VALUES | {"description": "For <b>liver</b> lesions."}
DIGEST = tiny.federation(**ASKED).digest()


def make_place(folder: Path) -> Place:
    write_kit(folder / "kit", **ASKED)
    StateFolder(folder / "state").make()
    return Place(folder / "kit", folder / "state", default_ledger())


def shell_of(place: Place) -> Shell:
    folder = place.state / "page"
    folder.mkdir(exist_ok=True)
    return Shell(hospital_side(place, Jobs(place.state / "logs" / "page.log"), folder), Address((HOST,), 8750))


def visitor(place: Place, role: Role = Role.LOOK) -> TestClient:
    return signed_in(shell_of(place), role)


def words(answer: Response) -> str:
    """What a person reads on a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.text.partition("<main")[2])).split())


def do(client: TestClient, action: str, path: str = "/", **fields: str) -> str:
    """Send one of the page's forms, and return what the page then says."""
    answer = client.post(action, data={"csrf": csrf_of(client, path)} | fields, headers=SAME_ORIGIN)
    assert answer.status_code == 303, answer.text
    return words(client.get(answer.headers["location"]))
