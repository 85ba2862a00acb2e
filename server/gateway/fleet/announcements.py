"""Replies on their way to SuperLink: announced with a list of objects, then handed over object by object."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

MOST_ANNOUNCEMENTS = 64
"""Of one node, of which the objects are awaited; the oldest are forgotten, and have to be announced again."""


@dataclass
class _Announcement:
    """reply_to: the message that is answered. objects: that SuperLink asked for. missing: those it has not got yet."""

    reply_to: str
    objects: frozenset[str]
    missing: set[str] = field(default_factory=set)


class Announcements:
    """What SuperLink asked for when a reply was announced, by node and session. In memory alone."""

    def __init__(self) -> None:
        self._by_node: dict[int, OrderedDict[str, _Announcement]] = {}

    def begin(self, node: int, session: str, reply_to: str, wanted: Collection[str]) -> None:
        """A reply was announced.

        Parameters
        ----------
        node
            by whom.
        session
            SuperLink's name for it.
        reply_to
            the message that it answers.
        wanted
            the objects that SuperLink does not have yet.
        """
        sessions = self._by_node.setdefault(node, OrderedDict())
        sessions[session] = _Announcement(reply_to, frozenset(wanted), set(wanted))
        while len(sessions) > MOST_ANNOUNCEMENTS:
            sessions.popitem(last=False)

    def includes(self, node: int, session: str, identity: str) -> bool:
        """Whether a node was asked for an object in a session."""
        found = self._find(node, session)
        return found is not None and identity in found.objects

    def note_stored(self, node: int, session: str, identity: str) -> str | None:
        """SuperLink has an object now; the message that is answered if it was the reply's last, else None."""
        found = self._find(node, session)
        if found is None:
            return None
        found.missing.discard(identity)
        if found.missing:
            return None
        del self._by_node[node][session]
        return found.reply_to

    def _find(self, node: int, session: str) -> _Announcement | None:
        return self._by_node[node].get(session) if node in self._by_node else None
