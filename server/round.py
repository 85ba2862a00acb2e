"""One round: a task to every site, and what becomes of the replies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType

from common.config import FederationConfig
from common.errors import ProtocolError
from common.manifest import manifest_of
from common.parts import name_arrays
from common.protocol import Progress, Refusal, SiteInfo, Task, Vector, pack_tasks, pack_weights, unpack_result
from common.transport import Encoding, squared_norm
from server import round_lines
from server.admission import RefusedError, admit, judge_norms
from server.app_lock import SPOOL
from server.exchange import Exchange, NoReply
from server.roster import Roster, cannot_pay, error_name, is_gone, says_no
from server.spool import Spool
from server.state import RunFolder, RunState

SiteDone = Callable[[str, Mapping[str, Any]], None]


class OutgoingWeights:
    """Weights to be sent, packed and measured by another thread from now on, while this one writes them down.

    Args:
        values: the weights, which must not change.
        encoding: the form in which they are sent.
    """

    def __init__(self, values: Vector, encoding: Encoding) -> None:
        self.values = values
        beside = ThreadPoolExecutor(1)
        self._packed: Future[ArrayRecord] | None = beside.submit(lambda: name_arrays(pack_weights(values, encoding)))
        self._squares = beside.submit(squared_norm, values)
        beside.shutdown(wait=False)

    @property
    def norm(self) -> float:
        """L2 norm of the weights."""
        return math.sqrt(self._squares.result())

    def take(self) -> ArrayRecord:
        """The packed weights; once, so that nothing keeps them in memory when they are sent."""
        packed, self._packed = self._packed, None
        if packed is None:
            raise RuntimeError("these weights were sent already")
        return packed.result()


class Round:
    """Sends one task, checks the replies as they come, and knows at the end which of them count.

    Args:
        config: the federation.
        labels: that every site must report a Dice for.
        state: of the run, before this round.
        folder: of the run; accepted updates wait in it.
        task: what is asked; each site also hears whether its last reply was refused.
        sites: whom to ask, by node.
        size: number of weights.
        site_done: hears of every entry, and again when an entry changes at the end of the round.
    """

    def __init__(
        self,
        config: FederationConfig,
        labels: set[int],
        state: RunState,
        folder: RunFolder,
        task: Task,
        sites: Mapping[int, SiteInfo],
        size: int,
        site_done: SiteDone,
    ) -> None:
        self._config = config
        self._labels = labels
        self._state = state
        self._folder = folder
        self.task = task
        self._sites = dict(sites)
        self._size = size
        self._site_done = site_done
        self._started = time.perf_counter()
        self.lines: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, Refusal | None] = {}
        self.bytes_up = 0
        self.bytes_down = 0
        self.spool = Spool(folder.path / SPOOL, task.run, task.round, size, task.upload)

    @property
    def seconds(self) -> float:
        """Since the round began."""
        return time.perf_counter() - self._started

    @property
    def accepted(self) -> list[str]:
        """Sites whose replies count, in a fixed order."""
        return sorted(site for site, line in self.lines.items() if line["status"] == "ok")

    def run(
        self, exchange: Exchange, roster: Roster, weights: OutgoingWeights, seen: Callable[[str, Progress], None]
    ) -> None:
        """Asks all sites, waits for their replies, and judges the updates together."""
        if self.task.train:
            self.spool.open()
            self._take_up_spooled()
        asked = {node: info for node, info in self._sites.items() if info.site not in self.lines}
        sent = self._send(exchange, asked, weights)

        def take(node: int, reply: Message | NoReply) -> None:
            info = asked[node]
            self._note(info.site, self._entry(reply, info))
            error = None if isinstance(reply, NoReply) or not reply.has_error() else reply
            if reply in (NoReply.MISSING, NoReply.SILENT) or (error is not None and is_gone(error)):
                roster.lose(node, info.site, self.task.round, sits_out=True)
            elif error is not None and says_no(error):
                roster.lose(node, info.site, self.task.round, sits_out=cannot_pay(error))
            else:
                roster.answered(node, info)

        exchange.gather(sent, str(self.task.round), take, lambda node, step: seen(asked[node].site, step), roster.look)
        if self.task.train:
            self._judge(weights.norm)

    def mean_update(self, weight: Callable[[str], float]) -> Vector:
        """The weighted mean of the updates that count."""
        return self.spool.mean({site: weight(site) for site in self.accepted})

    def summary(self) -> dict[str, Any]:
        """The round's line in ``rounds.jsonl``."""
        return {
            "round": self.task.round,
            "phase": "train" if self.task.train else "evaluate",
            "model_round": self.task.round - 1,
            "seconds": round(self.seconds, 3),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            **round_lines.totals(self.lines, self._labels),
            "sites": {site: self.lines[site] for site in sorted(self.lines)},
        }

    def _send(self, exchange: Exchange, asked: Mapping[int, SiteInfo], weights: OutgoingWeights) -> dict[str, int]:
        refused_last = self._state.refused_last
        tasks = [Task(**vars(self.task) | {"refused_last": refused_last.get(info.site)}) for info in asked.values()]
        contents = dict(zip(asked, pack_tasks(tasks, weights.take()), strict=True))
        self.bytes_down = sum(round_lines.payload_bytes(content) for content in contents.values())
        kind = MessageType.TRAIN if self.task.train else MessageType.EVALUATE
        return exchange.send(contents, kind, str(self.task.round))

    def _take_up_spooled(self) -> None:
        """Counts what was accepted before a crash in this round, of sites that take part."""
        here = {info.site for info in self._sites.values()}
        for site, update in sorted(self.spool.updates.items()):
            if site not in here:
                self.spool.drop(site)
                continue
            self.bytes_up += update.size
            self.refusals[site] = None
            self._note(site, round_lines.accepted(update.result, update.sha256))

    def _entry(self, reply: Message | NoReply, info: SiteInfo) -> dict[str, Any]:
        """Checks one reply, puts its update aside, and says what ``rounds.jsonl`` shall hold of it."""
        if reply is NoReply.MISSING:
            return round_lines.not_counted("missing", "deadline", info, self._labels)
        if reply is NoReply.SILENT:
            return round_lines.not_counted("missing", "silence", info, self._labels)
        if isinstance(reply, NoReply):
            return self._refuse(Refusal.PROTOCOL, info)
        if reply.has_error():
            return round_lines.not_counted("failed", error_name(reply), info, self._labels)
        self.bytes_up += round_lines.payload_bytes(reply.content)
        try:
            result, update = unpack_result(reply.content, self._size, self.task.upload)
            most_steps = self._config.training.local_steps
            admit(result, update, self.task, info, self._labels, most_steps, self._config.privacy)
            sha256 = manifest_of(reply.content)["sha256"]
            if update is not None:
                self.spool.add(result, update, sha256)
        except ProtocolError:
            return self._refuse(Refusal.PROTOCOL, info)
        except RefusedError as error:
            return self._refuse(error.code, info)
        self.refusals[info.site] = None
        return round_lines.accepted(result, sha256)

    def _judge(self, length: float) -> None:
        """Takes back updates that moved too far from weights of this norm, now that all are known."""
        norms = {site: update.norm for site, update in self.spool.updates.items()}
        infos = {info.site: info for info in self._sites.values()}
        for site, reason in judge_norms(norms, self._state.norms, length, self._size).items():
            self.spool.drop(site)
            self._note(site, self._refuse(reason, infos[site]))

    def _refuse(self, reason: Refusal, info: SiteInfo) -> dict[str, Any]:
        self.refusals[info.site] = reason
        return round_lines.not_counted("refused", reason, info, self._labels)

    def _note(self, site: str, line: dict[str, Any]) -> None:
        self.lines[site] = line
        if line["status"] != "ok":
            self._folder.event("site_not_counted", round=self.task.round, site=site, reason=line["reason"])
        self._site_done(site, line)
