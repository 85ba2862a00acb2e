"""Questions to sites and their answers: one reply in memory at a time, and no site can hold up the others.

What Flower's messages allow decides the form. A site can only speak in reply to a message, and its SuperNode handles
one message at a time, so a site at work cannot be asked how far it is. A site that needs longer than its heartbeat
interval therefore answers with ``Progress`` while its training goes on, and is asked on with a wait message; every
new step moves its deadline. So each message, task or wait, has an answer soon. Where none comes, the message or its
answer was lost, or the site hangs altogether, and it is waited for a shorter while only. That the node is online proves
nothing: a SuperNode stays online beside a site that hangs.
"""

from __future__ import annotations

import gc
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import FedvoxError, ProtocolError
from common.protocol import WAIT, Progress, is_progress, pack_wait, unpack_progress

PULL_INTERVAL_SECONDS = 0.1
MOST_DEADLINES = 24


class FederationError(FedvoxError):
    """The federation cannot go on."""


class NoReply(Enum):
    """Why there is no reply to take: no end in time, no sign of life, or something that cannot be read."""

    MISSING = "missing"
    SILENT = "silent"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Patience:
    """How long the server of a real federation waits.

    deadline_seconds: for a reply, or for a site's next step; however slowly it goes on, a site gets no more than
        ``MOST_DEADLINES`` of them in one round.
    silence_seconds: for any answer to one message, be it a sign of life, unless its upload has begun; while the node is
        offline it does not run.
    gathering_seconds: for the sites that are not there yet when the federation (re)starts and has its quorum.
    offline_seconds: for a node that went offline while its site was at work; its reply still counts when it is back.
    stall_seconds: for a reply whose upload has begun, before the others are looked after meanwhile.
    look_seconds: between looks at who is online.
    retry_seconds: before a node that could not take part is asked again; doubles up to a minute.
    """

    deadline_seconds: float = 3600.0
    silence_seconds: float = 600.0
    gathering_seconds: float = 60.0
    offline_seconds: float = 120.0
    stall_seconds: float = 20.0
    look_seconds: float = 1.0
    retry_seconds: float = 5.0


Take = Callable[[int, Message | NoReply], None]
Seen = Callable[[int, Progress], None]


@dataclass
class _Asked:
    node: int
    round: str
    began: float
    sign: float
    sent: float
    step: int = -1
    offline_since: float | None = None


class Exchange:
    """Sends messages over a Flower grid and hands out the replies as they come.

    Args:
        grid: Flower's.
        patience: of a real federation. None is for simulations: there every site answers, in its own time, in the
            calling thread, and an error of the grid is an error of the run.
    """

    def __init__(self, grid: Grid, patience: Patience | None) -> None:
        self._grid = grid
        self._patience = patience
        self._puller: _Puller | None = None
        self._stalled: dict[str, _Puller] = {}
        self._late: set[str] = set()
        self._online: set[int] = set()
        self._online_at = -math.inf
        if patience is not None:
            # What is loaded by now stays anyway. Collecting after every reply (``_free``) then need not look at it.
            gc.freeze()

    def send(
        self, contents: Mapping[int, RecordDict], message_type: str, group: str, seconds: float | None = None
    ) -> dict[str, int]:
        """Sends every node its content; returns message identity -> node.

        Args:
            contents: node -> what to send.
            message_type, group: Flower's.
            seconds: after which a message that was not fetched is void; by default somewhat more than the deadline.
        """
        ttl = seconds if seconds or self._patience is None else self._patience.deadline_seconds + 60
        messages = [Message(content, node, message_type, group_id=group, ttl=ttl) for node, content in contents.items()]
        if not messages:
            return {}
        identities = list(self._grid.push_messages(messages))
        if len(identities) != len(messages):
            raise FederationError("a message to a site could not be stored; look at the SuperLink's log")
        # A node that left meanwhile gets no message, and Flower an empty identity; its deadline tells.
        return {identity or f"unsent-{node}": node for identity, node in zip(identities, contents, strict=True)}

    def gather(
        self,
        sent: Mapping[str, int],
        group: str,
        take: Take,
        seen: Seen | None = None,
        idle: Callable[[], None] | None = None,
    ) -> None:
        """Waits for the replies to ``sent`` and hands them to ``take``, one at a time.

        A reply is handed over and forgotten before the next one is pulled, so that two are never in memory.

        Args:
            sent: what ``send`` returned.
            group: what ``send`` got, for further messages.
            take: gets node and reply, or why there is none; each node once.
            seen: gets every sign of life.
            idle: called between looks; must return soon.
        """
        began = time.monotonic()
        waiting = {identity: _Asked(node, group, began, began, began) for identity, node in sent.items()}
        self._free()
        self._sweep()
        while waiting:
            quiet = True
            for identity in list(waiting):
                if self._look(identity, waiting, take, seen):
                    quiet = False
                    self._free()
            if idle is not None:
                idle()
            if quiet and waiting:
                time.sleep(self._interval(time.monotonic() - began))

    def poll(self, identity: str) -> Message | NoReply | None:
        """The reply to one message if it is there; never waits for long."""
        if identity.startswith("unsent-"):
            return NoReply.MISSING
        if self._patience is None:
            replies = list(self._grid.pull_messages([identity]))
            return replies[0] if replies else None
        return self._pull_in_thread(identity, self._patience.stall_seconds)

    def abandon(self, identities: Iterable[str]) -> None:
        """Stops waiting for replies; when they come they are pulled away, so that SuperLink does not keep them."""
        self._late.update(identities)

    def _look(self, identity: str, waiting: dict[str, _Asked], take: Take, seen: Seen | None) -> bool:
        """Looks for one reply; whether there was one to take."""
        asked = waiting[identity]
        reply = None if self._may_come_back(asked) else self.poll(identity)
        overdue = self._is_overdue(asked)
        if reply is None:
            if not overdue and not self._is_silent(asked, identity):
                return False
            self.abandon([identity])
            reply = NoReply.MISSING if overdue else NoReply.SILENT
        del waiting[identity]
        progress = _progress_in(reply, asked.round)
        if progress is None:
            take(asked.node, reply)
            return True
        if progress.step > asked.step:
            asked.step, asked.sign = progress.step, time.monotonic()
            if seen is not None:
                seen(asked.node, progress)
        elif overdue:
            take(asked.node, NoReply.MISSING)
            return True
        content = pack_wait(progress.run, progress.round)
        [following] = self.send({asked.node: content}, f"{MessageType.QUERY}.{WAIT}", asked.round)
        waiting[following], asked.sent = asked, time.monotonic()
        return False

    def _may_come_back(self, asked: _Asked) -> bool:
        """Whether the node is offline, but not for long: asking Flower for its reply now would give the reply up."""
        if self._patience is None:
            return False
        now = time.monotonic()
        if now - self._online_at > self._patience.look_seconds:
            self._online, self._online_at = set(self._grid.get_node_ids()), now
        if asked.node in self._online:
            if asked.offline_since is not None:
                asked.offline_since, asked.sent = None, now
            return False
        asked.offline_since = asked.offline_since or now
        return now - asked.offline_since < self._patience.offline_seconds

    def _is_overdue(self, asked: _Asked) -> bool:
        if self._patience is None:
            return False
        now, deadline = time.monotonic(), self._patience.deadline_seconds
        return now - asked.sign > deadline or now - asked.began > MOST_DEADLINES * deadline

    def _is_silent(self, asked: _Asked, identity: str) -> bool:
        if self._patience is None or asked.offline_since is not None or identity in self._stalled:
            return False
        return time.monotonic() - asked.sent > self._patience.silence_seconds

    def _interval(self, elapsed: float) -> float:
        """Pause between looks: a fiftieth of the time that it took so far, but 0.05 s at least and a second at most."""
        if self._patience is None:
            return PULL_INTERVAL_SECONDS
        return min(max(elapsed / 50, 0.05), 1.0)

    def _free(self) -> None:
        """Flower's records refer to themselves: what was sent or taken would stay until the collector comes by."""
        if self._patience is not None:
            gc.collect()

    def _sweep(self) -> None:
        self._late = {identity for identity in self._late if self.poll(identity) is None}

    def _pull_in_thread(self, identity: str, seconds: float) -> Message | NoReply | None:
        """Pulls in another thread, because Flower waits for the whole upload once it has begun."""
        puller = self._stalled.get(identity)
        if puller is None:
            puller = self._puller = self._puller or _Puller(self._grid)
            puller.requests.put(identity)
        else:
            seconds = 0
        try:
            result = puller.results.get(timeout=seconds) if seconds else puller.results.get_nowait()
        except queue.Empty:
            self._stalled[identity] = puller
            if self._puller is puller:
                self._puller = None
            return None
        if self._stalled.pop(identity, None) is not None:
            puller.requests.put(None)
        if isinstance(result, Exception):
            # If SuperLink itself is gone this raises too, and the run ends. Else this one reply is to blame.
            list(self._grid.get_node_ids())
            return NoReply.UNREADABLE
        return result[0] if result else None


def _progress_in(reply: Message | NoReply, group: str) -> Progress | None:
    """A believable sign of life; anything else is for the round to judge."""
    if isinstance(reply, NoReply) or not reply.has_content() or not is_progress(reply.content):
        return None
    try:
        progress = unpack_progress(reply.content)
    except ProtocolError:
        return None
    return progress if str(progress.round) == group and progress.step <= progress.steps else None


class _Puller(threading.Thread):
    """Pulls the replies that it is asked for, one after another."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(daemon=True)
        self._grid = grid
        self.requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[list[Message] | Exception] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        """Works until it is asked for None."""
        while (identity := self.requests.get()) is not None:
            try:
                self.results.put(list(self._grid.pull_messages([identity])))
            except Exception as error:  # whatever a site sent, it must not end the run
                self.results.put(error)
