"""One round: sends a task to every site and checks the replies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Message, MessageType

from common.config.algorithms import NEED_SGD
from common.config.personal import own_steps
from common.config.schedule import round_length
from common.errors import ProtocolError
from common.protocol.codec import (
    Refusal,
    Result,
    SiteInfo,
    Task,
    from_record,
    pack,
    unpack_answer,
)
from common.weights.store import MissingWeightsError
from server.progress.events import EventSink, SiteDone, SiteStep
from server.rounds import round_log
from server.rounds.admission import RefusedError, UpdateReader, admit, admit_personal_score, judge_norms
from server.rounds.aggregation import StoredUpdates
from server.rounds.exchange import Ask, Exchange, NoReply
from server.rounds.judgement.conduct import is_enough, with_round
from server.rounds.judgement.copies import Copies, find_copies
from server.rounds.judgement.directions import Directions, compare_directions
from server.rounds.judgement.lengths import scales
from server.rounds.roster import Roster, cannot_pay, error_name, is_gone, says_no
from server.rounds.strategies.strategy import Updates
from server.rounds.terms import Terms
from server.rounds.update_store import UpdateStore
from server.rounds.weight_transfer import Published, WeightTransfer
from server.run_store.folder import RunFolder, RunState
from server.run_store.locks import UPDATES


class Round:
    """Sends one task, checks replies as they arrive, and decides which of them count.

    Parameters
    ----------
    terms
        Terms of the federation.
    vectors
        Vectors per update that the strategy needs.
    state
        State of the run before this round.
    folder
        The run folder; it holds the notes of accepted updates.
    task
        The task; each site's copy also says whether its last reply was refused.
    transfer
        Transfers weights.
    emit
        Receives sites' progress and every entry, again if it changes at the end of the round.

    Attributes
    ----------
    bytes_up, bytes_down
        Transferred weights; the small messages are not counted.
    """

    def __init__(
        self,
        terms: Terms,
        vectors: int,
        state: RunState,
        folder: RunFolder,
        task: Task,
        transfer: WeightTransfer,
        emit: EventSink,
    ) -> None:
        self._terms = terms
        self._labels = set(terms.labels)
        self._state = state
        self._folder = folder
        self.task = task
        self._sites: dict[int, SiteInfo] = {}
        self._size = terms.layout.size
        self._transfer = transfer
        self._emit = emit
        earlier = folder.read_rounds()
        known = round_log.digests(earlier)
        self._reader = UpdateReader(transfer, self._size, task.upload, vectors, known, terms.kept)
        self._longest = round_log.longest(earlier)
        self._started = time.perf_counter()
        self.lines: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, Refusal | None] = {}
        self.directions = Directions()
        self.scales: dict[str, float] = {}
        self.copies = Copies()
        self.bytes_up = 0
        self.bytes_down = 0
        self.updates = UpdateStore(folder.path / UPDATES, task.run, task.round, self._size, task.upload, transfer)

    @property
    def seconds(self) -> float:
        """Seconds since the round began."""
        return time.perf_counter() - self._started

    @property
    def accepted(self) -> list[str]:
        """Sites whose replies count, in a fixed order."""
        return sorted(site for site, line in self.lines.items() if line["status"] == "ok")

    def run(
        self,
        exchange: Exchange,
        roster: Roster,
        sites: Mapping[int, SiteInfo],
        model: Published,
    ) -> None:
        """Send the task to these sites (by node), wait for their replies, and compare their updates' norms."""
        self._sites = dict(sites)
        self.updates.open(self._reader.read_again)
        if self.task.train:
            self._recover_accepted()
        asked = {node: info for node, info in self._sites.items() if info.site not in self.lines}
        sent = self._send(exchange, asked, model)

        def take(node: int, reply: Message | NoReply) -> None:
            info = asked[node]
            self._record(info.site, self._entry(reply, info))
            error = None if isinstance(reply, NoReply) or not reply.has_error() else reply
            if reply in (NoReply.MISSING, NoReply.SILENT) or (error is not None and is_gone(error)):
                roster.lose(node, info.site, self.task.round, sits_out=True)
            elif error is not None and says_no(error):
                roster.lose(node, info.site, self.task.round, sits_out=cannot_pay(error))
            else:
                roster.answered(node, info)

        def seen(node: int, step: int, steps: int) -> None:
            self._emit(SiteStep(self.task.round, asked[node].site, step, steps))

        exchange.gather(sent, take, seen, roster.look)
        self._transfer.close_round()
        if self.task.train:
            self._judge(model.norm)

    def accepted_updates(self) -> Updates:
        """Return the accepted updates for a strategy."""
        return self._stored(self.accepted, self.scales)

    def _stored(self, sites: Sequence[str], scales: Mapping[str, float]) -> StoredUpdates:
        return self.updates.accepted(sites, self._terms.config.strategy.weights, scales)

    def summary(self) -> dict[str, Any]:
        """Return the round's line in ``rounds.jsonl``."""
        return {
            "round": self.task.round,
            "phase": "train" if self.task.train else "evaluate",
            "model_round": self.task.round - 1,
            "seconds": round(self.seconds, 3),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            **round_log.totals(self.lines, self._labels),
            "sites": {site: self.lines[site] for site in sorted(self.lines)},
        }

    def _send(self, exchange: Exchange, asked: Mapping[int, SiteInfo], model: Published) -> dict[str, Ask]:
        state = self._state
        tasks = {
            node: replace(
                self.task,
                refused_last=state.refused_last.get(info.site),
                counted_last=state.counted.get(info.site, 0),
                **self._folder.reports.last(info.site).as_seen(),
            )
            for node, info in asked.items()
        }
        by_site = {asked[node].site: task for node, task in tasks.items()}
        self._transfer.open_tasks(by_site, self._reader.bytes if self.task.train else 0)
        kind = MessageType.TRAIN if self.task.train else MessageType.EVALUATE
        asks = [
            Ask(node, pack(task), kind, str(task.round), task.name, self._all_steps(asked[node]) if task.train else 0)
            for node, task in tasks.items()
        ]
        self.bytes_down = len(asks) * model.bytes
        return exchange.send(asks)

    def _steps(self, info: SiteInfo) -> int:
        """Return how many steps a site has to make."""
        return self._terms.config.training.steps_of(info.train_examples)

    def _all_steps(self, info: SiteInfo) -> int:
        """Return how many steps a site has to make, those of a personal model included."""
        steps = self._steps(info)
        return steps + own_steps(self._terms.config.personal, steps)

    def length(self, site: str) -> float:
        """Return the norm of a site's update, comparable with those of other sites.

        FedNova and SCAFFOLD divide updates by the length of their steps, so there it is the norm of as many steps as
        the federation allows.
        """
        update = self.updates.updates[site]
        config, number = self._terms.config, self.task.round
        if config.strategy.name not in NEED_SGD:
            return update.norm
        longest = round_length(config, number, config.training.local_steps)
        return update.norm * longest / round_length(config, number, update.result.steps)

    def _recover_accepted(self) -> None:
        """Count updates accepted in this round before a crash; drop those of sites that no longer take part."""
        present = {info.site for info in self._sites.values()}
        for site, update in sorted(self.updates.updates.items()):
            if site not in present:
                self.updates.drop(site)
                continue
            self.bytes_up += update.size
            self.refusals[site] = None
            self._record(site, round_log.accepted(update.result, update.sha256))

    def _entry(self, reply: Message | NoReply, info: SiteInfo) -> dict[str, Any]:
        """Check one reply and its update, and return the site's entry in ``rounds.jsonl``."""
        if reply is NoReply.MISSING:
            return round_log.not_counted("missing", "deadline", info, self._labels)
        if reply is NoReply.SILENT:
            return round_log.not_counted("missing", "silence", info, self._labels)
        if reply is NoReply.UNREADABLE:
            return self._refuse(Refusal.MISSING_UPDATE, info)
        if reply.has_error():
            return round_log.not_counted("failed", error_name(reply), info, self._labels)
        try:
            text, result = self._unpack(reply, info)
            config = self._terms.config
            training = config.training
            scores_own = training.scores_own_model(self.task.round)
            # These algorithms divide by the steps: a site would count for more with fewer of them than it should make.
            most = self._steps(info)
            steps = range(most if config.strategy.name in NEED_SGD else 1, most + 1)
            admit(result, self.task, info, self._labels, steps, config.privacy, scores_own)
            admit_personal_score(result, self._terms.personal_labels)
            # The hash in the site's sent log: of the update or, without one, of the whole reply.
            sha256 = result.update or hashlib.sha256(text.encode()).hexdigest()
            if result.update is not None:
                update = self._reader.read(result, sha256)
                self.updates.add(update)
                self.bytes_up += update.size
        except ProtocolError:
            return self._refuse(Refusal.PROTOCOL, info)
        except MissingWeightsError:
            return self._refuse(Refusal.MISSING_UPDATE, info)
        except RefusedError as error:
            return self._refuse(error.code, info)
        self.refusals[info.site] = None
        return round_log.accepted(result, sha256)

    def _unpack(self, reply: Message, info: SiteInfo) -> tuple[str, Result]:
        """Return a reply's text and content, and note what its site reports, even if the reply will not count."""
        text = from_record(reply.content)
        result = unpack_answer(text)
        if not isinstance(result, Result):
            raise ProtocolError("not a reply to a task")
        if result.site == info.site:
            self._folder.reports.note(result)
        return text, result

    def _judge(self, weights_norm: float) -> None:
        """Judge all updates together: refuse outlying norms, compare directions, and scale down the longest."""
        lengths = {site: self.length(site) for site in self.updates.updates}
        infos = {info.site: info for info in self._sites.values()}
        for site, reason in judge_norms(lengths, self._state.norms, weights_norm, self._size).items():
            self.updates.drop(site)
            self._record(site, self._refuse(reason, infos[site]))
        norms = {site: self.updates.updates[site].norm for site in self.accepted}
        self.directions = compare_directions(self._stored(self.accepted, {}), norms, self._longest)
        for site in sorted(self.directions.opposed):
            if is_enough(with_round(self._state.conduct.get(site, []), Refusal.OPPOSED)):
                self.updates.drop(site)
                self._record(site, self._refuse(Refusal.OPPOSED, infos[site]))
        self.scales = scales({site: lengths[site] for site in self.accepted})
        model = self._folder.map_checkpoint(self._state.round, self._terms.layout)
        self.copies = find_copies(self._stored(self.accepted, {}), model, self._state)
        for site, norm in norms.items():
            self.lines[site] |= {
                "length": norm,
                "scale": self.scales.get(site),
                "cosine": self.directions.cosines.get(site),
                "likeness": self.copies.likeness.get(site),
            }

    def _refuse(self, reason: Refusal, info: SiteInfo) -> dict[str, Any]:
        self.refusals[info.site] = reason
        return round_log.not_counted("refused", reason, info, self._labels)

    def _record(self, site: str, line: dict[str, Any]) -> None:
        self.lines[site] = line
        if line["status"] != "ok":
            self._folder.event("site_not_counted", round=self.task.round, site=site, reason=line["reason"])
        self._emit(SiteDone(self.task.round, site, line))
