"""Simulated federations in which some sites lie, and what became of their models."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.runner.client_app import SiteWeights, make_client_app
from common.config.federation import FederationConfig
from common.protocol.codec import Result, SiteInfo, Vector, from_record, pack, to_record, unpack_answer
from common.weights.encoding import encode_vector, vector_of
from common.weights.store import MemoryStore
from server.progress.events import Event, Notice
from server.rounds.initial_weights import first_weights, weight_layout
from server.rounds.round_loop import FederationError, Link, RoundLoop, make_server_app
from server.rounds.terms import Terms
from server.rounds.weight_transfer import StoreTransfer
from server.run_store.folder import RunFolder
from server.simulation.data_setup import find_or_make_data, plan_and_partition
from server.simulation.inline_grid import InlineGrid
from server.simulation.partition import read_partition
from server.simulation.simulated_sites import SimulatedSites

Lie = Callable[[int, Vector, Vector | None], Vector]
"""Round, honest update, the update sent in the round before -> the update to send."""


@dataclass(frozen=True)
class Liar:
    """What a site says instead of the truth.

    Args:
        update: what it sends instead of its update.
        patients: what it declares to have for training.
        dice: round -> the Dice that it claims.
    """

    update: Lie | None = None
    patients: int | None = None
    dice: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a federation: exact honest scores of the released model, and what the run folder says."""

    released: int
    dice: float
    quarantine: Mapping[str, int]
    alarms: Sequence[str]
    rounds: Sequence[Mapping[str, Any]]
    ended: str | None


def prepare(config: FederationConfig, folder: Path, data: Path | None = None) -> SimulatedSites:
    """Scans, plan, partition and sites."""
    made = RunFolder.create(folder)
    made.write_text("federation.yaml", config.resolved())
    found = find_or_make_data(config, data, made, quiet)
    plan_and_partition(config, found, made, None, quiet)
    return SimulatedSites(config, made.plan(), read_partition(folder / "partition.json"), found, None, "cpu")


def quiet(event: Event) -> None:
    """Says nothing."""


def only(sites: SimulatedSites, names: Sequence[str]) -> SimulatedSites:
    """The same federation with these sites only."""
    partition = sites.partition.model_copy(update={"sites": {name: sites.partition.sites[name] for name in names}})
    return replace(sites, partition=partition, _opened=sites._opened, _trainer=sites._trainer)


def run(sites: SimulatedSites, liars: Mapping[str, Liar], folder: Path) -> Outcome:
    """Runs a federation to its end, or to the error that ends it."""
    shutil.rmtree(folder, ignore_errors=True)
    made = RunFolder.create(folder)
    layout = weight_layout(sites.plan)
    made.save_checkpoint(0, first_weights(sites.config, sites.plan)[0], layout)
    made.begin(sites.config.digest(), "inline")
    store = MemoryStore()
    app = _Lying(make_client_app(sites, SiteWeights(store, store)), sites.names, liars, store)
    grid = InlineGrid(app, {index + 1: {"partition-id": index} for index in range(len(sites.names))})
    terms = Terms.of(sites.config, sites.plan, layout)
    link = Link(StoreTransfer(store, "float32"), make_message=grid.message)
    said: list[str] = []

    def emit(event: Event) -> None:
        if isinstance(event, Notice):
            said.append(event.text)

    ended = None
    try:
        make_server_app(lambda: RoundLoop(terms, len(sites.names), made, emit, link))(
            grid, Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
        )
    except FederationError as error:
        ended = str(error)
    state, rounds = made.load_state(), made.read_rounds()
    assert state is not None
    honest = [name for name in sites.names if name not in liars]
    line = next((line for line in rounds if line["model_round"] == state.released_round), None)
    scores = [line["sites"][name]["mean_dice"] or 0.0 for name in honest if name in line["sites"]] if line else []
    last = {name: max(line["round"] for line in rounds if name in line["sites"]) for name in state.quarantine}
    alarms = [text for text in said if text.startswith("ALARM")]
    return Outcome(state.released_round, mean(scores) if scores else math.nan, last, alarms, rounds, ended)


class _Lying(ClientApp):
    """The real sites' app; what liars say is changed on its way out."""

    def __init__(self, app: ClientApp, names: Sequence[str], liars: Mapping[str, Liar], store: MemoryStore) -> None:
        super().__init__()
        self._app, self._names, self._liars, self._store = app, names, liars, store
        self._sent: dict[str, Vector] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self._app(message, context)
        name = self._names[int(context.node_config["partition-id"])]
        liar = self._liars.get(name)
        if liar is None or reply.has_error():
            return reply
        answer = unpack_answer(from_record(reply.content))
        if isinstance(answer, SiteInfo):
            answer = replace(answer, train_examples=liar.patients or answer.train_examples)
        elif isinstance(answer, Result):
            answer = self._lie(name, liar, answer)
        return Message(to_record(pack(answer)), reply_to=message)

    def _lie(self, name: str, liar: Liar, result: Result) -> Result:
        result = replace(result, examples=liar.patients or result.examples)
        if liar.dice is not None:
            result = replace(result, dice=dict.fromkeys(result.dice, liar.dice(result.round)))
        if liar.update is None or result.update is None:
            return result
        content = self._store.get(result.update)
        honest = vector_of(content, content.size // 4, "float32")
        sent = liar.update(result.round, honest, self._sent.get(name))
        self._sent[name] = sent
        pieces = encode_vector(np.ascontiguousarray(sent, np.float32), "float32")
        return replace(result, update=self._store.put(data for _, data in pieces))
