"""Who has signed in: links that work once, and sessions.

All of it is in memory and measured on the monotonic clock: a clock that jumps neither ends a session nor revives one.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from common.web.listening import is_here
from common.web.visits import Role, Session

LINK_SECONDS = 3600.0
SESSION_SECONDS = 12 * 3600.0
MOST_LINKS = 32
MOST_SESSIONS = 64


class Sessions:
    """Links and sessions of one server.

    Parameters
    ----------
    clock
        Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._links: dict[str, tuple[Role, str, float]] = {}
        self._sessions: dict[str, Session] = {}
        self._made = 0

    def new_link(self, role: Role, made_by: str = "") -> str:
        """Return a token that signs in one person, once, within ``LINK_SECONDS``.

        Parameters
        ----------
        made_by
            Who asked for it, for the name of whoever uses it.
        """
        self._forget_old()
        while len(self._links) >= MOST_LINKS:
            del self._links[next(iter(self._links))]
        self._made += 1
        token = secrets.token_urlsafe(32)
        who = f"link {self._made} ({role})" + (f" from {made_by}" if made_by else "")
        self._links[_key_of(token)] = role, who, self._clock() + LINK_SECONDS
        return token

    def sign_in(self, token: str, address: str) -> str | None:
        """Exchange a link's token for the secret of a new session; None for a wrong, used or expired one.

        Parameters
        ----------
        address
            Where the request comes from; of another machine, it is part of the name in the audit log.
        """
        self._forget_old()
        found = self._links.pop(_key_of(token), None)
        if found is None:
            return None
        role, who, _ = found
        return self.open(role, who if is_here(address) else f"{who} at {address}")

    def open(self, role: Role, who: str) -> str:
        """Open a session for somebody who has proved who they are, and return its secret."""
        self._forget_old()
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        secret = secrets.token_urlsafe(32)
        self._sessions[_key_of(secret)] = Session(role, who, self._clock() + SESSION_SECONDS)
        return secret

    def find(self, secret: str | None) -> Session | None:
        """Return the session with this secret, if it is open."""
        session = self._sessions.get(_key_of(secret or ""))
        return session if session is not None and session.expires > self._clock() else None

    def close(self, session: Session) -> None:
        """End a session."""
        self._sessions = {key: other for key, other in self._sessions.items() if other is not session}

    def is_open(self, session: Session) -> bool:
        """Return whether a session has neither ended nor expired."""
        return session.expires > self._clock() and any(other is session for other in self._sessions.values())

    def _forget_old(self) -> None:
        now = self._clock()
        self._links = {key: link for key, link in self._links.items() if link[2] > now}
        self._sessions = {key: session for key, session in self._sessions.items() if session.expires > now}


def _key_of(secret: str) -> str:
    """Look secrets up by their hash: how long that takes says nothing about a secret."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
