"""What one side of Fedvox gives the shell, and gets from it: pages, actions, and who asks for them."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.errors import FedvoxError
from common.web.texts import Texts

MOST_TAKEN = 1000
"""Forms of a session that are remembered as sent; those before the oldest of them count as sent."""


class NotThereError(FedvoxError):
    """There is no such page, or nothing to show on it; answered with 404."""


class Role(StrEnum):
    """What somebody may do: see the pages, or also act on them."""

    LOOK = "look"
    ACT = "act"


class Forms:
    """Tokens of a session's forms, each of which is taken once: a form that is sent again changes nothing."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._made = 0
        self._taken: set[int] = set()
        self._oldest = 0

    def new(self) -> str:
        """Return the token of a new form."""
        self._made += 1
        return f"{self._made}.{self._seal(str(self._made))}"

    def is_ours(self, token: str) -> bool:
        """Return whether a token is one of this session's."""
        number, _, seal = token.partition(".")
        return hmac.compare_digest(self._seal(number).encode(), seal.encode())

    def take(self, token: str) -> bool:
        """Take a token that is ours, and return whether nobody has before."""
        number = int(token.partition(".")[0])
        if number <= self._oldest or number in self._taken:
            return False
        self._taken.add(number)
        if len(self._taken) > MOST_TAKEN:
            self._oldest = min(self._taken)
            self._taken.remove(self._oldest)
        return True

    def _seal(self, number: str) -> str:
        return hmac.digest(self._key, number.encode(), "sha256").hex()


@dataclass(eq=False)
class Session:
    """Somebody who has signed in.

    Attributes
    ----------
    who
        Their name in the audit log.
    expires
        On the monotonic clock, in seconds.
    forms
        The tokens of their forms.
    notice
        What the next page tells them, once.
    """

    role: Role
    who: str
    expires: float
    forms: Forms = field(default_factory=Forms, repr=False)
    notice: Notice | None = None


@dataclass(frozen=True)
class Notice:
    """A text of the catalogue with its values; ``wrong`` if something did not work."""

    key: str
    values: Mapping[str, Any] = field(default_factory=dict)
    wrong: bool = False


@dataclass(frozen=True)
class Visit:
    """One request of a signed-in person.

    Attributes
    ----------
    path
        The path that they asked for.
    parameters
        From the path: whatever its pattern lets through.
    query
        From the query; anything at all.
    t
        The texts in their language.
    """

    session: Session
    path: str
    parameters: Mapping[str, Any]
    query: Mapping[str, str]
    t: Texts

    @property
    def may_act(self) -> bool:
        """Whether they may act."""
        return self.session.role is Role.ACT


@dataclass(frozen=True)
class Page:
    """A template and its values, to be shown; with ``data_images``, its scripts may make pictures of their own."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    data_images: bool = False


@dataclass(frozen=True)
class Data:
    """JSON for a script of the page."""

    content: Any


@dataclass(frozen=True)
class Download:
    """A file that the browser saves instead of showing it, under ``name``."""

    path: Path
    name: str


@dataclass(frozen=True)
class GoTo:
    """Another path of this page."""

    path: str


Answer = Page | Data | Download | GoTo
View = Callable[[Visit], Answer]


@dataclass(frozen=True)
class Action:
    """Something that a person with the role ``act`` does with a form.

    Attributes
    ----------
    name
        Its name in the audit log.
    act
        Does it with the form's fields, and returns what to tell. A ``FedvoxError`` is told instead.
    fields
        The form's fields; a request with others is refused.
    """

    name: str
    act: Callable[[Visit, Mapping[str, str]], Notice]
    fields: tuple[str, ...] = ()


Audit = Callable[[Visit, str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Side:
    """All that one side gives the shell.

    Attributes
    ----------
    folder
        The room's folder, with ``templates/``, ``texts/`` (one YAML file per language) and perhaps ``static/``.
    pages
        Path pattern of Starlette, such as ``/runs/{run:int}`` -> what answers GET. It runs in a thread of its own. A
        ``FedvoxError`` is shown as a page.
    actions
        Path pattern -> what answers POST, in a thread of its own. It is the path of a page and one more part:
        ``/runs/{run:int}/release`` leads back to ``/runs/{run:int}``.
    audit
        Writes an entry (event, details) before an action is done, and after one that failed; what it raises prevents
        the action. It also gets the event ``sign_in_link`` of the shell's own action.
    watch
        Returns topic -> a value that changes when there is news; called about twice a second while somebody looks.
        Elements of a page that list a topic (see ``templates/shell.html.jinja``) are then fetched again.
    """

    folder: Path
    pages: Mapping[str, View]
    actions: Mapping[str, Action]
    audit: Audit
    watch: Callable[[], Mapping[str, object]]
