"""Sends messages to sites and gathers replies: one reply in memory at a time, and no site can block the others.

Weights travel outside the messages (``server.rounds.weight_transfer``), so a message is about a kilobyte. In a real
federation three rules keep a round going through crashes:

* A reply is pulled from Flower only once the gateway has seen all of it: Flower blocks on an incomplete one.
* Heartbeats say every few seconds which tasks a site holds. A task that its site does not hold is redelivered under the
  same name, so the site works on it only once.
* Every new training step extends its site's deadline.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import FedvoxError
from common.protocol.codec import to_record
from common.protocol.messages import Heartbeat

log = logging.getLogger("fedvox.server")

PULL_INTERVAL_SECONDS = 0.1
HEARTBEAT_INTERVAL_SECONDS = 0.25
"""Between checks of a site's last heartbeat."""
MOST_DEADLINES = 24


class FederationError(FedvoxError):
    """The federation cannot continue."""


class NoReply(Enum):
    """Why there is no reply: deadline passed, site silent, or reply unreadable."""

    MISSING = "missing"
    SILENT = "silent"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Patience:
    """How long the server of a real federation waits, in seconds.

    Attributes
    ----------
    deadline_seconds
        For a reply or a site's next step. A slow site gets at most ``MOST_DEADLINES`` times as long per round.
    silence_seconds
        For a site that sends heartbeats but does not take its task.
    offline_seconds
        For a site that sends no heartbeat at all.
    resend_seconds
        Before a task that a site does not hold is redelivered.
    gathering_seconds
        For the remaining sites when a federation (re)starts and has its quorum.
    stall_seconds
        For Flower to deliver a reply, before turning to the other sites in the meantime.
    look_seconds
        Between checks of which nodes are online.
    retry_seconds
        Before an unusable node gets another hello; doubles up to a minute.
    """

    deadline_seconds: float = 3600.0
    silence_seconds: float = 600.0
    offline_seconds: float = 120.0
    resend_seconds: float = 5.0
    gathering_seconds: float = 60.0
    stall_seconds: float = 20.0
    look_seconds: float = 1.0
    retry_seconds: float = 5.0


class Signals(Protocol):
    """Signals between the round loop and the gateway."""

    def ring(self, node: int) -> None:
        """Signal that a message waits for a node."""

    def has_reply(self, message: str) -> bool:
        """Return whether Flower has the whole reply to a message."""

    def forget(self, message: str) -> None:
        """Signal that the reply to a message is no longer wanted."""

    def heartbeat(self, node: int) -> tuple[float, Heartbeat] | None:
        """Return the last heartbeat of a node's site, with its time in seconds since the epoch."""


class MessageMaker(Protocol):
    """Makes Flower's messages; ``flwr.app.Message`` in a process that Flower started."""

    def __call__(
        self,
        content: RecordDict,
        dst_node_id: int,
        message_type: str,
        *,
        ttl: float | None = None,
        group_id: str | None = None,
    ) -> Message:
        """Return a message."""


ReplyHandler = Callable[[int, Message | NoReply], None]
ProgressHandler = Callable[[int, int, int], None]
"""Receives node, step and number of steps."""


@dataclass
class Ask:
    """One message to a node.

    Attributes
    ----------
    text
        Content of the message.
    kind, group
        Flower's message type and group.
    task
        Name of the task; empty if the node need not hold it (a hello).
    steps
        Training steps of the task; a site that claims to be further is not believed.
    """

    node: int
    text: str
    kind: str
    group: str
    task: str = ""
    steps: int = 0


@dataclass
class _Waiting:
    """Times are from ``time.monotonic``, except ``sent_at``: from ``time.time``, like heartbeats."""

    ask: Ask
    identities: list[str]
    started: float
    last_progress: float
    sent: float
    sent_at: float
    step: int = -1
    held: bool = False
    last_checked: float = 0.0


class Exchange:
    """Sends messages over a Flower grid and hands on the replies as they arrive.

    Parameters
    ----------
    grid
        Flower's grid.
    make_message
        Makes Flower's messages.
    patience, signals
        For a real federation. None for simulations: every site replies without a deadline, replies are pulled in the
        calling thread, and an error of the grid ends the run.
    """

    def __init__(
        self, grid: Grid, make_message: MessageMaker, patience: Patience | None, signals: Signals | None
    ) -> None:
        self._grid = grid
        self._make_message = make_message
        self._patience = patience
        self._signals = signals
        self._puller: _Puller | None = None
        self._stalled: dict[str, _Puller] = {}

    def send(self, asks: Iterable[Ask], seconds: float | None = None) -> dict[str, Ask]:
        """Send every node its message; return message identity -> message.

        Parameters
        ----------
        asks
            The messages.
        seconds
            Time to live; by default a minute more than ``MOST_DEADLINES`` deadlines, and Flower's own in simulations.
        """
        asks = list(asks)
        if not asks:
            return {}
        ttl = seconds if seconds or self._patience is None else MOST_DEADLINES * self._patience.deadline_seconds + 60
        messages = [
            self._make_message(to_record(ask.text), ask.node, ask.kind, group_id=ask.group, ttl=ttl) for ask in asks
        ]
        identities = list(self._grid.push_messages(messages))
        if len(identities) != len(messages):
            raise FederationError("a message to a site could not be stored; look at the SuperLink's log")
        if self._signals is not None:
            for ask in asks:
                self._signals.ring(ask.node)
        # Flower returns an empty identity for a node that has left; its deadline then passes without a reply.
        return {identity or f"unsent-{ask.node}": ask for identity, ask in zip(identities, asks, strict=True)}

    def gather(
        self,
        sent: Mapping[str, Ask],
        take: ReplyHandler,
        seen: ProgressHandler | None = None,
        idle: Callable[[], None] | None = None,
    ) -> None:
        """Wait for the replies to ``sent`` and hand them to ``take``, one at a time.

        Parameters
        ----------
        sent
            What ``send`` returned.
        take
            Receives each node's reply, or why there is none, once.
        seen
            Receives every new training step.
        idle
            Called between checks; must return quickly.
        """
        began, now = time.monotonic(), time.time()
        waiting = [_Waiting(ask, [identity], began, began, began, now) for identity, ask in sent.items()]
        while waiting:
            no_reply_yet = True
            for each in list(waiting):
                reply = self._check(each, seen)
                if reply is not None:
                    waiting.remove(each)
                    self.forget(each.identities)
                    take(each.ask.node, reply)
                    no_reply_yet = False
            if idle is not None:
                idle()
            if no_reply_yet and waiting:
                time.sleep(self._interval(time.monotonic() - began))

    def poll(self, identity: str) -> Message | NoReply | None:
        """Return the reply to one message if it has arrived; wait at most ``stall_seconds``."""
        if identity.startswith("unsent-"):
            return NoReply.MISSING
        if self._patience is None or self._signals is None:
            replies = list(self._grid.pull_messages([identity]))
            return replies[0] if replies else None
        if identity not in self._stalled and not self._signals.has_reply(identity):
            return None
        return self._pull_in_thread(identity, self._patience.stall_seconds)

    def forget(self, identities: Iterable[str]) -> None:
        """Stop waiting for replies to these messages."""
        for identity in identities:
            puller = self._stalled.pop(identity, None)
            if puller is not None:
                puller.requests.put(None)
            if self._signals is not None and not identity.startswith("unsent-"):
                self._signals.forget(identity)

    def _check(self, waiting: _Waiting, seen: ProgressHandler | None) -> Message | NoReply | None:
        """Return a node's reply, or why there will be none; None while it is still expected."""
        for identity in waiting.identities:
            reply = self.poll(identity)
            if reply is not None and not (reply is NoReply.MISSING and self._patience is not None):
                return reply
        if self._patience is None or self._signals is None:
            return NoReply.MISSING if waiting.identities[0].startswith("unsent-") else None
        now = time.monotonic()
        if now - waiting.last_checked < HEARTBEAT_INTERVAL_SECONDS:
            return None
        waiting.last_checked = now
        beat = self._signals.heartbeat(waiting.ask.node)
        self._note_progress(waiting, beat, seen)
        deadline = self._patience.deadline_seconds
        if now - waiting.last_progress > deadline or now - waiting.started > MOST_DEADLINES * deadline:
            return NoReply.MISSING
        silence = now - waiting.started if beat is None else min(time.time() - beat[0], now - waiting.started)
        if silence > self._patience.offline_seconds:
            return NoReply.SILENT
        if waiting.ask.task and not waiting.held:
            if now - waiting.last_progress > self._patience.silence_seconds:
                return NoReply.SILENT
            self._redeliver(waiting, beat)
        return None

    def _note_progress(
        self, waiting: _Waiting, beat: tuple[float, Heartbeat] | None, seen: ProgressHandler | None
    ) -> None:
        if beat is None or beat[0] < waiting.sent_at:
            return
        heartbeat = beat[1]
        holds = waiting.ask.task in heartbeat.tasks
        if holds != waiting.held:
            # A site that lost its task, perhaps after hours, gets as long to take it again.
            waiting.held, waiting.last_progress = holds, time.monotonic()
        believable = heartbeat.step <= waiting.ask.steps
        if believable and heartbeat.task == waiting.ask.task and heartbeat.task and heartbeat.step > waiting.step:
            waiting.step, waiting.last_progress = heartbeat.step, time.monotonic()
            if seen is not None and heartbeat.step:
                seen(waiting.ask.node, heartbeat.step, waiting.ask.steps)

    def _redeliver(self, waiting: _Waiting, beat: tuple[float, Heartbeat] | None) -> None:
        """Redeliver a task that the site had time to receive but does not hold."""
        assert self._patience is not None  # noqa: S101 -- the caller has checked it
        patience = self._patience.resend_seconds
        if beat is None or time.monotonic() - waiting.sent < patience or beat[0] - waiting.sent_at < patience / 2:
            return
        [identity] = self.send([waiting.ask])
        waiting.identities.append(identity)
        waiting.sent, waiting.sent_at = time.monotonic(), time.time()

    def _interval(self, elapsed: float) -> float:
        """Return the pause between checks: a fiftieth of the elapsed time, 0.01 s to 1 s; fixed in simulations."""
        if self._patience is None:
            return PULL_INTERVAL_SECONDS
        return min(max(elapsed / 50, 0.01), 1.0)

    def _pull_in_thread(self, identity: str, seconds: float) -> Message | NoReply | None:
        """Pull in another thread, because Flower waits without a limit for missing parts of a reply."""
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
            log.warning("a reply is unreadable", exc_info=result)
            # If SuperLink itself is gone, this raises too and ends the run. Otherwise only this reply is bad.
            list(self._grid.get_node_ids())
            return NoReply.UNREADABLE
        return result[0] if result else None


class _Puller(threading.Thread):
    """Pulls requested replies one after another."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(daemon=True)
        self._grid = grid
        self.requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[list[Message] | Exception] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        """Pull replies until None is requested."""
        while (identity := self.requests.get()) is not None:
            try:
                self.results.put(list(self._grid.pull_messages([identity])))
            except Exception as error:  # nothing that a site sends may end the run
                self.results.put(error)
