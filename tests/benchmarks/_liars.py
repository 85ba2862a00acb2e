"""Simulated federations in which some sites lie, and what became of their models."""

from __future__ import annotations

import json
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
from common.imaging.datasets.patients_csv import read_column
from common.protocol.codec import Result, SiteInfo, Vector, from_record, pack, to_record, unpack_answer
from common.weights.encoding import encode_vector, vector_of
from common.weights.store import MemoryStore
from server.progress.events import Event, Notice, RoundStarted
from server.rounds.initial_weights import first_weights, weight_layout
from server.rounds.round_loop import FederationError, Link, RoundLoop, make_server_app
from server.rounds.terms import Terms
from server.rounds.weight_transfer import StoreTransfer
from server.run_store.folder import RunFolder
from server.simulation.data_setup import find_or_make_data, find_simulated_dataset, plan_and_partition
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
    """What became of a federation: exact honest scores of the released model, and what the run folder says.

    Args:
        quarantine: site -> its last round.
        alarms: what each alarm is about, as in the run's state -> the round in which it first came.
    """

    released: int
    dice: float
    quarantine: Mapping[str, int]
    alarms: Mapping[str, int]
    rounds: Sequence[Mapping[str, Any]]
    ended: str | None

    def caught(self, names: Sequence[str]) -> int | None:
        """The first round after which an alarm on conduct named each of these sites; None if one never was."""
        found = []
        for name in names:
            about = [number for key, number in self.alarms.items() if _names(key, name)]
            if not about:
                return None
            found.append(min(about))
        return max(found, default=None)


def _names(key: str, site: str) -> bool:
    """Whether an alarm names a site for what it did to the model."""
    about, _, rest = key.partition(" ")
    return about in ("quarantine", "watch", "dispute", "length", "patients") and site in rest.replace(",", "").split()


def prepare(config: FederationConfig, folder: Path, data: Path | None = None) -> SimulatedSites:
    """Scans, plan, partition and sites."""
    made = RunFolder.create(folder)
    made.write_text("federation.yaml", config.resolved())
    found = find_or_make_data(config, data, made, quiet)
    plan_and_partition(config, find_simulated_dataset(config, found), made, None, quiet)
    return SimulatedSites(config, made.plan(), read_partition(folder / "partition.json"), found, None, "cpu")


def excerpt(data: Path, folder: Path, cases: Mapping[str, tuple[str, int]]) -> Path:
    """A dataset of some of the hippocampus scans, and which simulated site has them in its ``sites.csv``.

    Args:
        cases: site -> its acquisition group, and how many scans of it.
    """
    groups: dict[str, list[str]] = {}
    for case, (group, _) in sorted(read_column(data / "acquisition_groups.csv", "case", "group").items()):
        groups.setdefault(group, []).append(case)
    lines = ["case,site"]
    for site, (group, count) in cases.items():
        mine, groups[group] = groups[group][:count], groups[group][count:]
        lines += [f"{case},{site}" for case in mine]
        for case in mine:
            for name in ("imagesTr", "labelsTr"):
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / f"{case}.nii.gz").symlink_to(data.absolute() / name / f"{case}.nii.gz")
    declared = json.loads((data / "dataset.json").read_text())
    names = [line.partition(",")[0] for line in lines[1:]]
    declared["training"] = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names
    ]
    (folder / "dataset.json").write_text(json.dumps(declared | {"numTraining": len(names), "numTest": 0}))
    (folder / "sites.csv").write_text("\n".join(lines) + "\n")
    return folder


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
    number, said = 0, dict[str, int]()

    def emit(event: Event) -> None:
        nonlocal number
        if isinstance(event, RoundStarted):
            number = event.round
        elif isinstance(event, Notice):
            said.setdefault(event.text, number)

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
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    alarms: dict[str, int] = {}
    for event in events:
        if event["event"] == "alarm":
            alarms.setdefault(event["about"], said[f"ALARM: {event['text']}"])
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
