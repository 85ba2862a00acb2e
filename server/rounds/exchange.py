"""Messages to sites and their answers: one answer in memory at a time, and no site can hold up the others.

Weights travel beside the messages (``server.rounds.weight_transfer``), so a message is a kilobyte. In a real
federation three rules keep a round going, whatever is killed:

* A reply is asked of Flower only when the gateway has seen all of it: Flower blocks on one that is half there.
* A site says every few seconds which tasks it holds. One that does not hold its task gets it again; a task has the same
  name then, and a site works on it once.
* Every new training step moves the deadline of its site.
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
"""Between looks at what a site said last."""
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
    """How long the server of a real federation waits, in seconds.

    Attributes
    ----------
    deadline_seconds
        For a reply, or for a site's next step; however slowly it goes on, a site gets no more than ``MOST_DEADLINES``
        of them in one round.
    silence_seconds
        For a site that gives signs of life but does not take its task.
    offline_seconds
        For a site that gives no sign of life at all.
    resend_seconds
        Until a task that a site does not hold is sent again.
    gathering_seconds
        For the sites that are not there yet when the federation (re)starts and has its quorum.
    stall_seconds
        For Flower to hand out a reply, before the others are looked after meanwhile.
    look_seconds
        Between looks at who is online.
    retry_seconds
        Before a node that could not take part is asked again; doubles up to a minute.
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
    """What the gateway sees of sites, and how it hears of messages."""

    def ring(self, node: int) -> None:
        """Say that there is a message for a node."""

    def has_reply(self, message: str) -> bool:
        """Whether the whole reply to a message can be had from Flower."""

    def forget(self, message: str) -> None:
        """Say that nobody waits for the reply to a message any more."""

    def heartbeat(self, node: int) -> tuple[float, Heartbeat] | None:
        """When the site of a node last gave a sign of life (seconds since the epoch), and what it said."""


class MessageMaker(Protocol):
    """Makes Flower's messages; ``flwr.app.Message`` where Flower has started this process."""

    def __call__(
        self,
        content: RecordDict,
        dst_node_id: int,
        message_type: str,
        *,
        ttl: float | None = None,
        group_id: str | None = None,
    ) -> Message:
        """One message."""


ReplyHandler = Callable[[int, Message | NoReply], None]
ProgressHandler = Callable[[int, int, int], None]
"""Gets node, step and steps."""


@dataclass
class Ask:
    """One node and what it is asked.

    Attributes
    ----------
    text
        The message.
    kind, group
        Flower's.
    task
        Its name; empty if the node need not hold it (a hello).
    """

    node: int
    text: str
    kind: str
    group: str
    task: str = ""


@dataclass
class _Waiting:
    """Times are of ``time.monotonic``, but ``sent_at`` is of ``time.time``, as heartbeats are."""

    ask: Ask
    identities: list[str]
    began: float
    sign: float
    sent: float
    sent_at: float
    step: int = -1
    held: bool = False
    looked: float = 0.0


class Exchange:
    """Sends messages over a Flower grid and hands out the replies as they come.

    Parameters
    ----------
    grid
        Flower's.
    make_message
        Makes its messages.
    patience, signals
        Of a real federation. None is for simulations: there every site answers, in its own time, in the calling
        thread, and an error of the grid is an error of the run.
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
        """Send every node its message; return message identity -> what was asked.

        Parameters
        ----------
        asks
            Whom to ask what.
        seconds
            After which a message that was not fetched is void; by default somewhat more than the deadline.
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
        # A node that left meanwhile gets no message, and Flower an empty identity; its deadline tells.
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
            Gets node and reply, or why there is none; each node once.
        seen
            Hears of every new step.
        idle
            Called between looks; must return soon.
        """
        began, now = time.monotonic(), time.time()
        waiting = [_Waiting(ask, [identity], began, began, began, now) for identity, ask in sent.items()]
        while waiting:
            quiet = True
            for each in list(waiting):
                reply = self._look(each, seen)
                if reply is not None:
                    waiting.remove(each)
                    self.forget(each.identities)
                    take(each.ask.node, reply)
                    quiet = False
            if idle is not None:
                idle()
            if quiet and waiting:
                time.sleep(self._interval(time.monotonic() - began))

    def poll(self, identity: str) -> Message | NoReply | None:
        """Return the reply to one message if it is there; never wait for long."""
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

    def _look(self, waiting: _Waiting, seen: ProgressHandler | None) -> Message | NoReply | None:
        """Return the reply of one node, or why there will be none; None while it is waited for."""
        for identity in waiting.identities:
            reply = self.poll(identity)
            if reply is not None and not (reply is NoReply.MISSING and self._patience is not None):
                return reply
        if self._patience is None or self._signals is None:
            return NoReply.MISSING if waiting.identities[0].startswith("unsent-") else None
        now = time.monotonic()
        if now - waiting.looked < HEARTBEAT_INTERVAL_SECONDS:
            return None
        waiting.looked = now
        beat = self._signals.heartbeat(waiting.ask.node)
        self._note_progress(waiting, beat, seen)
        deadline = self._patience.deadline_seconds
        if now - waiting.sign > deadline or now - waiting.began > MOST_DEADLINES * deadline:
            return NoReply.MISSING
        silence = now - waiting.began if beat is None else min(time.time() - beat[0], now - waiting.began)
        if silence > self._patience.offline_seconds:
            return NoReply.SILENT
        if waiting.ask.task and not waiting.held:
            if now - waiting.sign > self._patience.silence_seconds:
                return NoReply.SILENT
            self._send_again(waiting, beat)
        return None

    def _note_progress(
        self, waiting: _Waiting, beat: tuple[float, Heartbeat] | None, seen: ProgressHandler | None
    ) -> None:
        if beat is None or beat[0] < waiting.sent_at:
            return
        said = beat[1]
        holds = waiting.ask.task in said.tasks
        if holds != waiting.held:
            # Also of a site that lost it, after hours maybe: it has as long to take it again.
            waiting.held, waiting.sign = holds, time.monotonic()
        if said.task == waiting.ask.task and said.task and said.step > waiting.step:
            waiting.step, waiting.sign = said.step, time.monotonic()
            if seen is not None and said.step:
                seen(waiting.ask.node, said.step, said.steps)

    def _send_again(self, waiting: _Waiting, beat: tuple[float, Heartbeat] | None) -> None:
        """Send a task again that the site has said not to hold, though it had the time to receive it."""
        assert self._patience is not None  # noqa: S101 -- the caller has seen it
        patience = self._patience.resend_seconds
        if beat is None or time.monotonic() - waiting.sent < patience or beat[0] - waiting.sent_at < patience / 2:
            return
        [identity] = self.send([waiting.ask])
        waiting.identities.append(identity)
        waiting.sent, waiting.sent_at = time.monotonic(), time.time()

    def _interval(self, elapsed: float) -> float:
        """Pause between looks: a fiftieth of the time that it took so far, but 0.01 s at least and a second at most."""
        if self._patience is None:
            return PULL_INTERVAL_SECONDS
        return min(max(elapsed / 50, 0.01), 1.0)

    def _pull_in_thread(self, identity: str, seconds: float) -> Message | NoReply | None:
        """Pull in another thread, because Flower waits for parts of a reply without a limit of ours."""
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
            log.warning("a reply cannot be read", exc_info=result)
            # If SuperLink itself is gone this raises too, and the run ends. Else this one reply is to blame.
            list(self._grid.get_node_ids())
            return NoReply.UNREADABLE
        return result[0] if result else None


class _Puller(threading.Thread):
    """Pulls the replies that it is asked for, one after another."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(daemon=True)
        self._grid = grid
        self.requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[list[Message] | Exception] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        """Work until it is asked for None."""
        while (identity := self.requests.get()) is not None:
            try:
                self.results.put(list(self._grid.pull_messages([identity])))
            except Exception as error:  # whatever a site sent, it must not end the run
                self.results.put(error)
