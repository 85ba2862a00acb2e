"""A side with one page, one action and one topic, and what a test needs to visit it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from common.errors import OutputError
from common.web.sessions import Sessions
from common.web.shell import Address, Shell
from common.web.visits import Action, Answer, Data, Notice, NotThereError, Page, Role, Side, Visit

HOST = "127.0.0.1:8750"
SAME_ORIGIN = {"Origin": f"http://{HOST}"}
TEMPLATE = """{% extends "shell.html.jinja" %}
{% from "parts.html.jinja" import live, button %}
{% block title %}{{ name }}{% endblock %}
{% block main %}{% call live(["room-1"], path) %}<h1>{{ name }}</h1>{% endcall %}
{{ button("/rooms/1/rename", "Rename", visit.session, "rename", {"name": "new"}) }}{% endblock %}
"""


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """What the side's pages show and its actions change."""

    folder: Path
    name: str = "room"
    entries: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    sign_ins: list[Mapping[str, Any]] = field(default_factory=list)
    log_is_broken: bool = False
    clock: Clock = field(default_factory=Clock)
    mark: int = 0
    pauses: list[float] = field(default_factory=list)

    def side(self) -> Side:
        for name, content in (
            ("templates/room.html.jinja", TEMPLATE),
            ("texts/en.yaml", "{}"),
            ("texts/de.yaml", "{}"),
        ):
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(content, encoding="utf-8")
        pages = {"/": self._page, "/rooms/{room:int}": self._page, "/names.json": self._names}
        actions = {"/rooms/{room:int}/rename": Action("rename", self._rename, ("name",))}
        return Side(self.folder, pages, actions, self._audit, lambda: {"room-1": self.mark})

    def shell(self, *, has_tls: bool = False) -> Shell:
        address = Address((HOST, "localhost:8750"), 8750, has_tls)
        return Shell(self.side(), address, Sessions(self.clock), self.clock, self._pause)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def _page(self, visit: Visit) -> Answer:
        if visit.parameters.get("room", 1) != 1:
            raise NotThereError("no such room")
        if self.name == "broken":
            raise OutputError("rooms.json: cannot be read")
        return Page("room.html.jinja", {"name": self.name})

    def _names(self, visit: Visit) -> Answer:
        return Data([self.name])

    def _rename(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        if not form["name"]:
            raise OutputError("a room needs a name")
        self.name = form["name"]
        return Notice("shell.not_done", {"why": "done"})

    def _audit(self, visit: Visit, event: str, details: Mapping[str, Any]) -> None:
        if self.log_is_broken:
            raise OutputError("the log is full")
        if event == "page_sign_in":
            self.sign_ins.append(details)
        else:
            self.entries.append((event, details))


def browser(shell: Shell, *, of: str = "127.0.0.1", **headers: str) -> TestClient:
    """A client that has not signed in, at an address; it follows no redirects."""
    scheme = "https" if shell.address.has_tls else "http"
    return TestClient(shell.app, f"{scheme}://{HOST}", follow_redirects=False, headers=headers, client=(of, 5000))


def signed_in(shell: Shell, role: Role) -> TestClient:
    client = browser(shell)
    token = shell.link(role).rpartition("token=")[2]
    answer = client.post("/sign-in", data={"token": token}, headers=SAME_ORIGIN)
    assert answer.status_code == 303, answer.text
    return client


def csrf_of(client: TestClient, path: str = "/") -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get(path).text)
    assert found is not None
    return found[1]
