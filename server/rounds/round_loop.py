"""The Flower ServerApp: the round loop.

Each site gets one message per round, which names the global model. The site scores the model on its own validation
patients, trains it, and replies with its update. Line ``r`` of ``rounds.jsonl`` therefore holds the scores of the model
sent in round ``r`` (the result of round ``r - 1``), and one evaluate-only message follows the last round.

``state.json`` is committed after every round, and each accepted update is noted in the run folder before the next one
is checked. After any crash the loop resumes from the last finished round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from common.formatting import counted
from common.protocol.codec import SiteInfo, Task, Vector
from common.weights.encoding import pieces_of
from server.progress.events import EventSink, Notice, RoundDone, RoundStarted
from server.release.choice import choose, leave_out
from server.rounds import round_log
from server.rounds.exchange import Exchange, FederationError, MessageMaker, Patience, Signals
from server.rounds.judgement.alarms import (
    alarms_of_choice,
    alarms_of_drift,
    alarms_of_patients,
    alarms_of_quarantine,
    alarms_of_round,
)
from server.rounds.kept_updates import keep_round, rounds_to_keep
from server.rounds.quarantine import read_releases, record_conduct
from server.rounds.roster import Names, Roster
from server.rounds.round import Round
from server.rounds.strategies.registry import make_strategy
from server.rounds.strategies.strategy import StrategyState, Updates, remembered
from server.rounds.terms import Terms
from server.rounds.weight_transfer import Published, WeightTransfer
from server.run_store.damage import check_files
from server.run_store.folder import RunFolder, RunState
from server.run_store.strategy_vectors import map_strategy_vector, strategy_vectors

STANDARD_DEVIATIONS = 2.0
"""Noise alone makes two scores differ by more than this once in twenty times."""


@dataclass(frozen=True)
class Link:
    """How the server reaches its sites.

    Attributes
    ----------
    transfer
        Transfers weights.
    make_message
        See ``MessageMaker``.
    names
        Flower node -> the site that registered its key; None without registration (simulation).
    patience, signals
        None if all sites are always present (simulation).
    """

    transfer: WeightTransfer
    make_message: MessageMaker = Message
    names: Names | None = None
    patience: Patience | None = None
    signals: Signals | None = None


class RoundLoop:
    """Runs a federation from its last committed round to its end.

    Parameters
    ----------
    terms
        Terms of the federation.
    sites
        Number of sites that take part.
    folder
        The run folder; its ``state.json`` and checkpoint must exist.
    emit
        Receives notices, progress, and every reply and round.
    link
        How the server reaches the sites.
    """

    def __init__(
        self,
        terms: Terms,
        sites: int,
        folder: RunFolder,
        emit: EventSink,
        link: Link,
    ) -> None:
        self._terms = terms
        self._config = terms.config
        self._layout = terms.layout
        self._sites = sites
        self._folder = folder
        self._emit = emit
        self._link = link
        self._strategy = make_strategy(terms.config, sites)
        # What hospitals sent is removed after its round.
        self._kept = rounds_to_keep(terms.config, sites, terms.layout.size) if link.names is None else range(0)

    def _quorum(self, excluded: Collection[str]) -> int:
        """Return the number of accepted updates that a round needs.

        Sites that are excluded already count among the malicious ones that the strategy allows for.
        """
        strategy = self._config.strategy
        trusted = strategy.least_updates - min(len(excluded), strategy.malicious)
        return max(strategy.min_sites, math.ceil(strategy.min_fraction * self._sites), trusted)

    def run(self, grid: Grid) -> None:
        """Run the remaining rounds, then the final evaluation.

        Raises
        ------
        FederationError
            Too few sites, too many failed rounds in a row, or weights that are not finite.
        DamagedFileError
            A file that the run rests on is damaged.
        """
        state = self._folder.load_state()
        if state is None:
            raise FederationError(f"{self._folder.path}: has no state.json; start a new run")
        for text in check_files(self._folder, state):
            self._say(text)
        self._folder.rewind(state)
        if state.finished:
            return
        link = self._link
        exchange = Exchange(grid, link.make_message, link.patience, link.signals)
        roster = Roster(grid, exchange, state, self._folder, self._sites, link.names, link.patience)
        roster.gather(self._quorum(state.quarantine), self._say, lambda: self._look_at_quarantine(state))
        model = self._publish(state, self._parts(self._folder.map_checkpoint(state.round, self._layout)))
        while state.round < self._config.rounds and not state.stopped_early:
            model = self._train_round(exchange, roster, state, model)
        if state.accepted_rounds == 0:
            raise FederationError(
                f"no round reached the quorum of {counted(self._quorum(()), 'usable update')}; there is no model: "
                + round_log.reasons(self._folder.read_rounds())
            )
        self._final_evaluation(exchange, roster, state, model)

    def _parts(self, weights: Vector) -> Iterator[Vector]:
        for piece in pieces_of(self._layout.size, "float32"):
            yield weights[piece.start : piece.start + piece.count]

    def _averaged(self, parts: Iterable[Vector], rounds: Collection[int]) -> Iterator[Vector]:
        """Yield the mean of a model and of those after earlier rounds (Izmailov et al. 2018)."""
        earlier = [self._folder.map_checkpoint(number, self._layout) for number in rounds]
        start = 0
        for part in parts:
            total = part.copy()
            for weights in earlier:
                total += weights[start : start + part.size]
            start += part.size
            yield total / np.float32(len(earlier) + 1)

    def _publish(self, state: RunState, parts: Iterable[Vector]) -> Published:
        """Publish weights whose checkpoint exists, or will once ``parts`` is consumed, and vectors for the sites."""
        checkpoint, offset = self._folder.checkpoint_values(state.round, self._layout)
        names = self._config.strategy.sent_vectors
        behind = (partial(self._sent_vectors, names, state),) if names else ()
        model = self._link.transfer.publish(parts, checkpoint, offset, *behind)
        if not math.isfinite(model.norm):
            raise FederationError(
                f"the weights after round {state.round} have NaN or infinite values; look at the sites' losses in "
                f"{self._folder.path / 'rounds.jsonl'}, and start a new run, for example with a lower "
                "training.learning_rate"
            )
        return model

    def _sent_vectors(self, names: Sequence[str], state: RunState) -> Iterator[Vector]:
        """Yield the strategy's vectors for the sites; they exist once the model before them was consumed."""
        for name in names:
            yield from self._parts(map_strategy_vector(self._folder, state.strategy_round, name, self._layout.size))

    def _task(self, state: RunState, model: Published, train: bool) -> Task:
        return Task(
            run=state.run,
            digest=state.digest,
            round=state.round + 1,
            rounds=self._config.rounds if train else state.round,
            train=train,
            model=model.model,
            download=model.encoding,
            upload=self._config.transport.upload,
        )

    def _train_round(self, exchange: Exchange, roster: Roster, state: RunState, model: Published) -> Published:
        sites = self._wait_for_sites(roster, state)
        task = self._task(state, model, train=True)
        finished = self._run_round(exchange, roster, state, model, task, sites)
        self._record_scores(finished, state)
        weights = self._folder.map_checkpoint(state.round, self._layout)
        if self._has_quorum(finished.summary(), state):
            updates = finished.accepted_updates()
            if task.round in self._kept:
                keep_round(self._folder.path, task.round, weights, updates)
            parts = self._next_weights(weights, updates, task.round, state)
            state.sketches |= finished.copies.sketches
            state.model_sketch = finished.copies.model
            state.norms |= {site: finished.length(site) for site in finished.accepted}
            kept = remembered(updates) if self._config.strategy.keeps_vectors else finished.accepted
            state.counted |= dict.fromkeys(kept, task.round)
            state.accepted_rounds += 1
            state.failed_rounds = 0
        else:
            parts = self._parts(weights)
            state.failed_rounds += 1
            self._folder.event("round_failed", round=task.round, accepted=len(finished.accepted))
        early_stop = self._config.early_stop
        state.stopped_early = early_stop is not None and state.rounds_without_gain >= early_stop.patience
        state.round = task.round
        if state.stopped_early or state.round == self._config.rounds:
            parts, state.recent = self._averaged(parts, state.recent), []
        else:
            fewer = (self._config.strategy.average_rounds or 1) - 1
            state.recent = [*state.recent, state.round][-fewer:] if fewer else []
        following = self._publish(state, self._folder.write_checkpoint(state.round, parts, self._layout))
        self._commit(state, finished)
        finished.updates.close()
        if state.failed_rounds >= self._config.strategy.max_failed_rounds:
            raise FederationError(
                f"{counted(state.failed_rounds, 'round')} in a row had too few usable updates (strategy.min_sites, "
                f"min_fraction): {round_log.reasons(self._folder.read_rounds())}; see all in "
                f"{self._folder.path / 'rounds.jsonl'}"
            )
        return following

    def _next_weights(self, weights: Vector, updates: Updates, round_number: int, state: RunState) -> Iterator[Vector]:
        """Yield the next model; consuming it also writes the strategy's vectors."""
        names, size = self._strategy.state_vectors, self._layout.size
        vectors = {name: map_strategy_vector(self._folder, state.strategy_round, name, size) for name in names}
        previous = StrategyState(vectors, state.strategy_numbers)
        with strategy_vectors(self._folder, round_number, names, size) as written:
            for part in self._strategy.aggregate(updates, weights, previous):
                for name in names:
                    written[name].add(part.state[name])
                yield part.weights
        state.strategy_round = round_number

    def _has_quorum(self, line: Mapping[str, Any], state: RunState) -> bool:
        """Return whether enough replies of a round, given by its line in ``rounds.jsonl``, were accepted."""
        accepted: int = sum(site["status"] == "ok" for site in line["sites"].values())
        return accepted >= self._quorum(round_log.blamed(line) | set(state.quarantine))

    def _final_evaluation(self, exchange: Exchange, roster: Roster, state: RunState, model: Published) -> None:
        sites = self._wait_for_sites(roster, state)
        task = self._task(state, model, train=False)
        finished = self._run_round(exchange, roster, state, model, task, sites)
        state.final_mean_dice = self._record_scores(finished, state)
        state.finished = True
        # Before the run is marked as finished: a finished run's updates are not removed after a crash.
        finished.updates.remove()
        self._commit(state, finished)
        self._folder.rewind(state)
        self._folder.event("finished", rounds=state.round, best_round=state.best_round)

    def _wait_for_sites(self, roster: Roster, state: RunState) -> dict[int, SiteInfo]:
        self._look_at_quarantine(state)
        roster.refresh()
        self._look_at_quarantine(state)
        roster.wait_for(self._quorum(state.quarantine), self._say, lambda: self._look_at_quarantine(state))
        return roster.active(state.round + 1, self._quorum(state.quarantine))

    def _look_at_quarantine(self, state: RunState) -> None:
        """Let released sites out, and tell at once who is in quarantine: the next round may be waiting for them."""
        for site in read_releases(self._folder, state):
            self._say(f"{site} was released from quarantine")
        if self._raise_alarms(state, alarms_of_quarantine(state)):
            self._folder.commit(state)

    def _run_round(
        self,
        exchange: Exchange,
        roster: Roster,
        state: RunState,
        model: Published,
        task: Task,
        sites: dict[int, SiteInfo],
    ) -> Round:
        self._emit(RoundStarted(task.round, "train" if task.train else "evaluate"))
        current = Round(
            self._terms,
            self._strategy.update_vectors,
            state,
            self._folder,
            task,
            self._link.transfer,
            self._emit,
        )
        current.run(exchange, roster, sites, model)
        copied = current.copies.copied
        record_conduct(self._folder, state, current.refusals, current.directions, current.scales, copied)
        self._raise_alarms(state, alarms_of_round(state, current.scales))
        if self._config.training.validate_local:
            self._raise_alarms(state, alarms_of_drift([*self._folder.read_rounds(), current.summary()]))
        patients = {site: current.lines[site]["examples"] for site in current.accepted}
        self._raise_alarms(state, alarms_of_patients(self._config.strategy.weights, patients))
        return current

    def _raise_alarms(self, state: RunState, alarms: Mapping[str, str]) -> bool:
        """Tell alarms that are new, and return whether there are any."""
        new = {key: text for key, text in alarms.items() if state.alarms.get(key) != text}
        for key, text in new.items():
            state.alarms[key] = text
            self._folder.event("alarm", about=key, text=text)
            self._say(f"ALARM: {text}")
        return bool(new)

    def _record_scores(self, finished: Round, state: RunState) -> float | None:
        """Return the sent model's mean validation Dice over sites, and choose the best round so far.

        Scores from fewer sites than the quorum do not affect the best round or the early stop.
        """
        line = finished.summary()
        mean_dice: float | None = line["mean_dice"]
        newest = round_log.scores(line)
        if not newest or not self._has_quorum(line, state):
            return mean_dice
        score = statistics.median((leave_out(newest, state.quarantine) or newest).values())
        gain = math.inf if state.highest_median_dice is None else score - state.highest_median_dice
        early_stop = self._config.early_stop
        enough = early_stop.min_delta if early_stop else 0.0
        state.rounds_without_gain = 0 if gain > enough else state.rounds_without_gain + 1
        if gain > 0:
            state.highest_median_dice = score
        self._choose_round(finished, state, newest)
        return mean_dice

    def _choose_round(self, finished: Round, state: RunState, newest: Mapping[str, float]) -> None:
        """Choose among the models that still exist and the one that was just scored."""
        scores = {
            line["model_round"]: round_log.scores(line)
            for line in self._folder.read_rounds()
            if self._has_quorum(line, state)
        }
        scores[state.round] = dict(newest)
        kept = {*state.candidates, state.round}
        choice = choose(scores, kept, state.quarantine, self._noise_margin(finished))
        if choice is None:
            return
        ignored = {*state.quarantine, *filter(None, [choice.left_out])}
        state.best_round = choice.round
        best = scores[choice.round]
        state.best_mean_dice = round_log.mean((leave_out(best, ignored) or best).values())
        state.candidates = sorted(choice.candidates)
        if not finished.task.train:
            self._raise_alarms(state, alarms_of_choice(choice))
            state.candidates = sorted(choice.candidates) if choice.left_out or choice.disputed else [choice.round]

    def _noise_margin(self, finished: Round) -> float:
        """Return the difference of two median Dice that noise alone explains; 0 without noise."""
        if self._terms.privacy is None:
            return 0.0
        scored = [line for site in finished.accepted if (line := finished.lines[site])["mean_dice"] is not None]
        deviation = self._terms.privacy.score_deviation([line["validation_examples"] for line in scored])
        # The median of three or more varies more than their mean.
        spread = math.sqrt(math.pi / 2) if len(scored) > 2 else 1.0
        return STANDARD_DEVIATIONS * math.sqrt(2) * spread * deviation

    def _commit(self, state: RunState, finished: Round) -> None:
        line = finished.summary()
        state.seconds += finished.seconds
        state.bytes_up += finished.bytes_up
        state.bytes_down += finished.bytes_down
        self._folder.append_round(line)
        self._folder.commit(state)
        # The newest checkpoint is scored only in the next round, so those that may still be released stay too.
        self._folder.keep_checkpoints(state.checkpoints, state.strategy_round)
        self._emit(RoundDone(line))

    def _say(self, text: str) -> None:
        self._emit(Notice(text))


def make_server_app(loop: Callable[[], RoundLoop]) -> ServerApp:
    """Return a ServerApp that runs the loop made by ``loop``."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        loop().run(grid)

    return app


__all__ = ["FederationError", "Link", "Patience", "RoundLoop", "make_server_app"]
