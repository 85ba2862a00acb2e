"""Tracks which sites are present: sites join, identify themselves, leave and return."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common.errors import ProtocolError
from common.protocol.codec import HELLO, ErrorCode, Hello, Refusal, SiteInfo, from_record, pack, unpack_answer
from server.rounds.exchange import Ask, Exchange, FederationError, NoReply, Patience
from server.rounds.quarantine import same_patients
from server.run_store.folder import RunFolder, RunState

HELLO_SECONDS = 60.0  # a busy site does not fetch its hello, so it gets a new one until it does
LONGEST_RETRY_SECONDS = 60.0
LONGEST_SIT_OUT = 8
FLOWER_UNAVAILABLE = {3, 4, 5}  # message, reply, node
SITE_SAYS_NO = {
    ErrorCode.WRONG_FEDERATION,
    ErrorCode.NOT_APPROVED,
    ErrorCode.PAUSED,
    ErrorCode.WITHDRAWN,
    ErrorCode.OUTSIDE_LIMITS,
    ErrorCode.REFUSED_BY_SITE,
    ErrorCode.PRIVACY_REQUIRED,
    ErrorCode.PRIVACY_BUDGET,
    ErrorCode.LEDGER,
    ErrorCode.APPROVAL_USED_UP,
    ErrorCode.ROLLED_BACK,
}
# A site answers this only when asked to train, and its answer is unlikely to change in the next round.
CANNOT_PAY = {ErrorCode.PRIVACY_BUDGET, ErrorCode.LEDGER, ErrorCode.APPROVAL_USED_UP}
Names = Callable[[int], str | None]


@dataclass
class _UnusableNode:
    """A node that cannot take part at the moment."""

    reason: str
    retry_at: float
    pause: float


class Roster:
    """The sites that are connected and have identified themselves.

    Parameters
    ----------
    grid, exchange
        Flower's grid, and the exchange that sends messages over it.
    state
        State of the run, with the quarantined sites.
    expected
        Number of sites in the federation.
    names
        Node -> the site's registered name, None for a node that is not registered. Without it the name that a site
        claims is trusted, as in simulations.
    patience
        None for simulations, in which all sites must be present and usable from the start.
    """

    def __init__(
        self,
        grid: Grid,
        exchange: Exchange,
        state: RunState,
        folder: RunFolder,
        expected: int,
        names: Names | None,
        patience: Patience | None,
    ) -> None:
        self._grid = grid
        self._exchange = exchange
        self._state = state
        self._folder = folder
        self._expected = expected
        self._names = names
        self._patience = patience
        self.present: dict[int, SiteInfo] = {}
        self._greeted: dict[str, int] = {}
        self._greeted_at: dict[str, float] = {}
        self._unusable: dict[int, _UnusableNode] = {}
        self._refreshed = -math.inf
        self._absences: dict[str, int] = {}
        self._due_in_round: dict[str, int] = {}

    @property
    def free(self) -> dict[int, SiteInfo]:
        """All sites that are present and not quarantined."""
        return {node: info for node, info in self.present.items() if info.site not in self._state.quarantine}

    @property
    def _held(self) -> str:
        """The sites in quarantine with their reasons, as the end of a sentence; empty if there are none."""
        quarantine = sorted(self._state.quarantine.items())
        listed = ", ".join(f"{site} ({reason})" for site, reason in quarantine)
        return f" (in quarantine: {listed}; fedvox-server release lets a site back in)" if quarantine else ""

    def active(self, round_number: int, quorum: int) -> dict[int, SiteInfo]:
        """Return the sites to ask in a round.

        Quarantined sites are left out. Sites that miss several rounds in a row, or whose privacy budget does not cover
        them, sit out 1, 3, then 7 rounds, unless the quorum needs them.
        """
        free = self.free
        due = {node: info for node, info in free.items() if self._due_in_round.get(info.site, 0) <= round_number}
        return due if len(due) >= quorum else free

    def gather(self, quorum: int, say: Callable[[str], None], between: Callable[[], object]) -> None:
        """Wait for all sites, or for the quorum once ``patience`` for the others runs out; see ``wait_for``.

        Raises
        ------
        FederationError
            In a simulation, a site cannot take part, or two sites have the same name.
        """
        if self._patience is None:
            self._gather_simulated()
            return
        started, last_reported = time.monotonic(), -1
        while True:
            self.look()
            between()
            here = len(self.free)
            waited = time.monotonic() - started
            if here >= self._expected - len(self._state.quarantine) and here >= quorum:
                return
            if here >= quorum and waited >= self._patience.gathering_seconds:
                return
            if here != last_reported:
                last_reported = here
                say(f"waiting for sites: {here} of {self._expected} are ready, {quorum} are needed")
            time.sleep(0.1)

    def wait_for(self, quorum: int, say: Callable[[str], None], between: Callable[[], object]) -> None:
        """Wait until the quorum is present, and call ``between`` after each check.

        Raises
        ------
        FederationError
            In a simulation, quarantine leaves too few sites.
        """
        last_reported = -1
        while (here := len(self.free)) < quorum:
            if self._patience is None:
                raise FederationError(f"too few sites: {here} left, {quorum} needed{self._held}")
            if here != last_reported:
                last_reported = here
                say(f"waiting for sites: {here} are ready, {quorum} are needed{self._held}")
                self._folder.event("waiting_for_quorum", present=here, needed=quorum)
            time.sleep(0.1)
            self.look()
            between()

    def look(self) -> None:
        """Call ``refresh``, but at most once every ``look_seconds``."""
        if self._patience is not None and time.monotonic() - self._refreshed >= self._patience.look_seconds:
            self.refresh()

    def refresh(self) -> None:
        """Drop sites that left, greet new nodes and read answers that have arrived. Do nothing in simulations."""
        if self._patience is None:
            return
        self._refreshed = time.monotonic()
        nodes = set(self._grid.get_node_ids())
        for node in [node for node in self.present if node not in nodes]:
            self._folder.event("site_left", site=self.present.pop(node).site)
        for identity, node in list(self._greeted.items()):
            reply = self._exchange.poll(identity)
            if reply is not None:
                self._forget([identity])
                self._take_answer(node, reply)
            elif time.monotonic() - self._greeted_at[identity] > HELLO_SECONDS:
                self._forget([identity])
        self._greet(nodes)

    def lose(self, node: int, site: str, round_number: int, sits_out: bool) -> None:
        """Take a site off the roster until it answers a new hello, which it cannot while it is busy or hangs.

        Parameters
        ----------
        node, site
            The site and its node.
        round_number
            The current round.
        sits_out
            Whether to ask the site less often, because it did not reply or lacks the privacy budget.
        """
        if self._patience is None:
            return
        self.present.pop(node, None)
        if sits_out:
            self._absences[site] = self._absences.get(site, 0) + 1
            self._due_in_round[site] = round_number + min(2 ** (self._absences[site] - 1), LONGEST_SIT_OUT)

    def answered(self, node: int, info: SiteInfo) -> None:
        """Note that a site replied in time; it returns to the roster without a new hello."""
        self._absences.pop(info.site, None)
        self._due_in_round.pop(info.site, None)
        if info.site in {other.site for other in self.present.values()}:
            return
        self.present[node] = info
        self._forget([identity for identity, greeted in self._greeted.items() if greeted == node])

    def _greet(self, nodes: Collection[int]) -> None:
        now = time.monotonic()
        known = {*self.present, *self._greeted.values()}
        new = sorted(
            node
            for node in nodes
            if node not in known and (node not in self._unusable or self._unusable[node].retry_at <= now)
        )
        for identity, ask in self._exchange.send(self._hellos(new), HELLO_SECONDS).items():
            self._greeted[identity], self._greeted_at[identity] = ask.node, now

    def _hellos(self, nodes: Iterable[int]) -> list[Ask]:
        return [Ask(node, pack(self._hello(node)), f"{MessageType.QUERY}.{HELLO}", "0") for node in nodes]

    def _hello(self, node: int) -> Hello:
        site = None if self._names is None else self._names(node)
        seen = {} if site is None else self._folder.reports.last(site).as_seen()
        return Hello(self._state.run, self._state.digest, **seen)

    def _forget(self, identities: Collection[str]) -> None:
        self._exchange.forget(identities)
        for identity in identities:
            del self._greeted[identity], self._greeted_at[identity]

    def _take_answer(self, node: int, reply: Message | NoReply) -> None:
        reason = self._admit(node, reply)
        if reason is None or self._patience is None:
            self._unusable.pop(node, None)
            return
        before = self._unusable.get(node)
        pause = self._patience.retry_seconds if before is None else min(2 * before.pause, LONGEST_RETRY_SECONDS)
        self._unusable[node] = _UnusableNode(reason, time.monotonic() + pause, pause)
        if before is None or before.reason != reason:
            name = None if self._names is None else self._names(node)
            self._folder.event("site_unusable", node=node, site=name, reason=reason)

    def _admit(self, node: int, reply: Message | NoReply) -> str | None:
        """Add a site to the roster, or return the reason why not."""
        if isinstance(reply, NoReply):
            return reply.value
        if reply.has_error():
            return error_name(reply)
        try:
            info = unpack_answer(from_record(reply.content))
        except ProtocolError:
            return "protocol"
        if not isinstance(info, SiteInfo):
            return "protocol"
        if self._names is not None and self._names(node) != info.site:
            return "wrong-site"
        if info.site in {other.site for other in self.present.values()}:
            return "name-in-use"
        if not same_patients(self._folder, self._state, info):
            return Refusal.PATIENTS_CHANGED
        self.present[node] = info
        self._folder.reports.note(info)
        sizes = {"train": info.train_examples, "validation": info.validation_examples}
        heads = {"ledger_head": info.ledger_head, "audit_head": info.audit_head}
        versions = {"fedvox": info.fedvox, "flwr": info.flwr, "torch": info.torch, "python": info.python}
        self._folder.event("site_ready", site=info.site, **sizes, **heads, versions=versions)
        return None

    def _gather_simulated(self) -> None:
        nodes: list[int] = []
        while len(nodes := sorted(self._grid.get_node_ids())) < self._expected:
            time.sleep(0.1)

        def take(node: int, reply: Message | NoReply) -> None:
            if isinstance(reply, NoReply) or reply.has_error():
                code = reply.value if isinstance(reply, NoReply) else error_name(reply)
                self._folder.event("site_unusable", node=node, reason=code)
                raise FederationError(f"a site cannot take part: {code}; see the site's log")
            info = unpack_answer(from_record(reply.content))
            assert isinstance(info, SiteInfo)  # noqa: S101 -- it comes from our own app in this process
            same_patients(self._folder, self._state, info)
            self.present[node] = info

        self._exchange.gather(self._exchange.send(self._hellos(nodes)), take)
        names = sorted(info.site for info in self.present.values())
        if len(set(names)) < len(names):
            raise FederationError(f"two sites have the same name: {', '.join(names)}; names must differ")
        self._folder.event("sites_ready", sites=names)


def error_name(reply: Message) -> str:
    """Return our code for an error reply, without the text that came with it."""
    try:
        return ErrorCode(reply.error.code).name.lower().replace("_", "-")
    except ValueError:
        return f"flower-error-{reply.error.code}"


def is_gone(reply: Message) -> bool:
    """Return whether Flower made this error reply because the site or its reply is no longer available."""
    return reply.error.code in FLOWER_UNAVAILABLE


def cannot_pay(reply: Message) -> bool:
    """Return whether the site's privacy budget or ledger does not allow the round."""
    return reply.error.code in CANNOT_PAY


def says_no(reply: Message) -> bool:
    """Return whether the site declines to take part for now."""
    return reply.error.code in SITE_SAYS_NO
