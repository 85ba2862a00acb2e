"""Replies being pushed to SuperLink: announced with a list of objects, then sent object by object."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

MOST_ANNOUNCEMENTS = 64
"""The most pending announcements of a node; the oldest are dropped, and must be announced again."""


@dataclass
class _Announcement:
    """An announced reply.

    Attributes
    ----------
    reply_to
        The message that it answers.
    objects
        The objects that SuperLink requested.
    missing
        Those of them that SuperLink has not received yet.
    """

    reply_to: str
    objects: frozenset[str]
    missing: set[str] = field(default_factory=set)


class Announcements:
    """The objects that SuperLink requested for each announced reply, by node and session. In memory only."""

    def __init__(self) -> None:
        self._by_node: dict[int, OrderedDict[str, _Announcement]] = {}

    def begin(self, node: int, session: str, reply_to: str, wanted: Collection[str]) -> None:
        """Record an announced reply.

        Parameters
        ----------
        node
            The node that announced it.
        session
            SuperLink's ID for the push.
        reply_to
            The message that it answers.
        wanted
            The objects that SuperLink does not have yet.
        """
        sessions = self._by_node.setdefault(node, OrderedDict())
        sessions[session] = _Announcement(reply_to, frozenset(wanted), set(wanted))
        while len(sessions) > MOST_ANNOUNCEMENTS:
            sessions.popitem(last=False)

    def includes(self, node: int, session: str, identity: str) -> bool:
        """Return whether SuperLink requested an object from a node in a session."""
        found = self._find(node, session)
        return found is not None and identity in found.objects

    def note_stored(self, node: int, session: str, identity: str) -> str | None:
        """Record a stored object; return the answered message if the reply is now complete, else None."""
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
