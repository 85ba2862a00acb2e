"""Sites written from scratch over Flower's real apps, honest and otherwise, and a network on which they come and go."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from client.runner.client_app import SiteWeights
from common.config.federation import FederationConfig
from common.privacy.calibration import calibrate
from common.protocol.codec import (
    ErrorCode,
    Hello,
    Result,
    SiteInfo,
    Task,
    Vector,
    WeightLayout,
    from_record,
    pack,
    to_record,
    unpack_answer,
    unpack_question,
)
from common.protocol.messages import Heartbeat
from common.weights.encoding import encode_vector, vector_of
from common.weights.store import Content, FileStore, MemoryStore, MissingWeightsError, WeightStore, map_file
from server.progress.events import Event, Notice, SiteStep
from server.rounds.round_loop import Link, Patience, RoundLoop, make_server_app
from server.rounds.terms import Terms
from server.rounds.weight_transfer import GatewaySignals, GatewayTransfer, StoreTransfer, WeightTransfer
from server.run_store.folder import RunFolder, RunState, now
from server.run_store.gateway_folder import GatewayFolder
from server.run_store.locks import NODES_FILE
from server.simulation.inline_grid import InlineGrid

LAYOUT = WeightLayout({"w": (4,)})
BEAT_SECONDS = 0.02
Answer = Callable[[Task, Vector], tuple[Result, Vector | None]]
Sites = list[tuple[str, int, Answer]]


class Silent:
    """An event sink that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def messages(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]

    @property
    def steps(self) -> list[tuple[str, int]]:
        return [(event.site, event.step) for event in self.events if isinstance(event, SiteStep)]


def begin(config: FederationConfig, layout: WeightLayout, folder: RunFolder, start: float = 0.0) -> None:
    """Makes the state and the first checkpoint of a run that has none."""
    if folder.load_state() is None:
        folder.save_checkpoint(0, np.full(layout.size, start, np.float32), layout)
        folder.commit(RunState(run="r1", digest=config.digest(), started=now()))


def run_over(  # noqa: PLR0913 -- one for each part of a run that a test may replace
    grid: InlineGrid,
    link: Link,
    config: FederationConfig,
    layout: WeightLayout,
    sites: int,
    folder: RunFolder,
    observer: Silent | None = None,
    labels: frozenset[int] = frozenset({1}),
) -> None:
    """Runs a federation from the beginning or from where the folder is."""
    observer = observer or Silent()
    local_steps = config.training.local_steps
    privacy = calibrate(config.privacy, config.rounds, local_steps) if config.privacy else None
    app = make_server_app(lambda: RoundLoop(Terms(config, layout, labels, privacy), sites, folder, observer, link))
    app(grid, Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}))


def run(
    config: FederationConfig,
    app: SharedApp,
    layout: WeightLayout,
    sites: int,
    folder: RunFolder,
    observer: Silent | None = None,
    transfer: WeightTransfer | None = None,
) -> None:
    """Runs a simulation over the app, site after site."""
    begin(config, layout, folder)
    grid = InlineGrid(app, nodes(sites))
    transfer = transfer or StoreTransfer(app.store, config.transport.download)
    run_over(grid, Link(transfer, grid.message), config, layout, sites, folder, observer)


def run_network(
    config: FederationConfig,
    network: FakeNetwork,
    layout: WeightLayout,
    patience: Patience,
    observer: Silent | None = None,
    labels: frozenset[int] = frozenset({1}),
) -> None:
    """Runs a federation over a network, as the server app does it."""
    folder = network.folder
    begin(config, layout, folder)
    link = Link(
        GatewayTransfer(network.gateway, config.transport.download),
        network.message,
        lambda node: network.registered.get(node),
        patience,
        network.signals,
    )
    run_over(network, link, config, layout, len(network.registered), folder, observer, labels)


def nodes(count: int) -> dict[int, Any]:
    return {index + 1: {"partition-id": index} for index in range(count)}


def honest(name: str, examples: int, step: float, dice: Callable[[Vector], float] = lambda weights: 0.5) -> Answer:
    """A site whose training adds ``step`` to every weight, and whose Dice is a function of the weights.

    In each round it is a little longer, by less than a millionth: the server refuses an update that was sent before.
    """

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result = Result(
            site=name,
            run=task.run,
            round=task.round,
            examples=examples,
            validation_examples=2,
            steps=1 if task.train else 0,
            train_loss=0.5 if task.train else math.nan,
            validation_loss=0.5,
            dice={1: dice(weights)},
            seconds=1.0,
            seconds_data=0.0,
            seconds_compute=0.5,
            seconds_evaluate=0.5,
        )
        return result, np.full(4, step * (1 + 2e-7 * task.round), np.float32) if task.train else None

    return answer


def site(name: str, examples: int, step: float) -> tuple[str, int, Answer]:
    return name, examples, honest(name, examples, step)


UNSENT = "f" * 64
"""SHA-256 of an update that nobody has sent."""


def broken(kind: str, name: str = "bad") -> Answer:
    """A site that trains honestly and then sends something else."""
    good = honest(name, 10, 1.0)

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, update = good(task, weights)
        if not task.train:
            return result, update
        if kind == "crash":
            raise ArithmeticError
        changes: dict[str, dict[str, Any]] = {
            "greedy": {"examples": 10**9},
            "replay": {"round": task.round - 1},
            "foreign": {"run": "another"},
            "mask": {"site": "a"},
            "proud": {"dice": {1: 1.0, 2: 1.0}},
            "glad": {"train_loss": -5.0},
            "busy": {"steps": 10**6},
        }
        if kind == "nan":
            return result, np.array([0, math.nan, 0, 0], np.float32)
        if kind == "short":
            return result, np.zeros(3, np.float32)
        if kind == "huge":
            return result, np.full(4, 1e6, np.float32)
        if kind == "empty":
            return result, None
        if kind == "unsent":
            return replace(result, update=UNSENT), None
        return replace(result, **changes[kind]), update

    return answer


class SharedApp(ClientApp):
    """A ClientApp of simulated sites, and the store that they share with the server.

    Args:
        make: makes the app for these weights.
        store: None is one in memory.
    """

    def __init__(self, make: Callable[[SiteWeights], ClientApp], store: WeightStore | None = None) -> None:
        super().__init__()
        self.store = MemoryStore() if store is None else store
        self._app = make(SiteWeights(self.store, self.store))

    def __call__(self, message: Message, context: Context) -> Message:
        return self._app(message, context)


def app_of(answers: Sites, tasks: list[tuple[str, Task]] | None = None, store: WeightStore | None = None) -> SharedApp:
    """A ClientApp of sites that answer as they please; ``tasks`` gets what each of them was asked."""
    return SharedApp(lambda weights: _app_over(answers, lambda name: weights, tasks), store)


def _app_over(
    answers: Sites, weights_of: Callable[[str], SiteWeights], tasks: list[tuple[str, Task]] | None
) -> ClientApp:
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        question = unpack_question(from_record(message.content))
        name, examples, work = answers[int(context.node_config["partition-id"])]
        if isinstance(question, Hello):
            info = SiteInfo(name, examples, 2, "0", "0", "0", "0", "cpu", "float32")
            return Message(to_record(pack(info)), reply_to=message)
        if tasks is not None:
            tasks.append((name, question))
        weights = weights_of(name)
        try:
            content = weights.inbox.get(question.model)
            size = content.size // (4 if question.download == "float32" else 2)
            result, update = work(question, vector_of(content, size, question.download))
        except ArithmeticError:
            return Message(Error(code=1000, reason="patient Jane Doe, bed 7"), reply_to=message)
        if update is not None:
            pieces = encode_vector(update, question.upload)
            result = replace(result, update=weights.outbox.put(data for _, data in pieces))
        return Message(to_record(pack(result)), reply_to=message)

    app.query("hello")(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


class GatewayWeights:
    """What a site can fetch and send through the gateway, as a store.

    Args:
        gateway: the folder in which the gateway finds what it serves and puts what it receives.
        site: whose.
    """

    def __init__(self, gateway: GatewayFolder, site: str) -> None:
        self._gateway = gateway
        self._site = site

    def get(self, digest: str) -> Content:
        """What one of the site's open tasks names."""
        for task in self._gateway.open_tasks(self._site):
            if task.model == digest:
                return map_file(self._gateway.run / task.file, task.offset)[: task.size]
        raise MissingWeightsError(digest)

    def put(self, parts: Iterable[Any]) -> str:
        """An upload, if one was asked for."""
        if not any(task.update_bytes for task in self._gateway.open_tasks(self._site)):
            raise MissingWeightsError("no update was asked for")
        return FileStore(self._gateway.updates(self._site)).put(parts)

    def keep(self, digests: object) -> None:
        raise AssertionError("a site removes nothing from the server")

    def drop(self, digest: str) -> None:
        raise AssertionError("a site removes nothing from the server")


def gateway_app(gateway: GatewayFolder, answers: Sites, tasks: list[tuple[str, Task]] | None = None) -> ClientApp:
    """As ``app_of``, for sites that reach the server through the gateway's folder."""

    def weights_of(name: str) -> SiteWeights:
        weights = GatewayWeights(gateway, name)
        return SiteWeights(weights, weights)

    return _app_over(answers, weights_of, tasks)


class FakeNetwork(InlineGrid):
    """Everything between the server app and the sites, and sites that do something whenever the server looks at them.

    Flower, gateway, couriers and runners are played here, in one thread; what gateway and server app tell each other
    goes through the real folder. A site that is there takes its messages, works on each task once, gives the same reply
    to one that comes again, and says every ``BEAT_SECONDS`` what it holds. Tests change ``works`` and ``step_of``.

    Args:
        folder: of the run.
        app: answers for all nodes; None is ``gateway_app`` of ``answers``.
        answers: one for each node, from node 1 on.
        registered: node -> the site that registered its key; None is as they answer.
        tasks: gets what each site worked on.
        online: whether a node is there.
        hangs: whether a site never gets done with a message that it has received.
        loses: whether a message never arrives.
    """

    def __init__(  # noqa: PLR0913 -- each says one thing that sites or the network do
        self,
        folder: RunFolder,
        answers: Sites,
        registered: Mapping[int, str] | None = None,
        tasks: list[tuple[str, Task]] | None = None,
        app: Callable[[GatewayFolder], ClientApp] | None = None,
        online: Callable[[int], bool] = lambda node: True,
        hangs: Callable[[int, Message], bool] = lambda node, message: False,
        loses: Callable[[int, Message], bool] = lambda node, message: False,
    ) -> None:
        self.folder = folder
        self.gateway = GatewayFolder(folder.path)
        self.gateway.make()
        client_app = gateway_app(self.gateway, answers, tasks) if app is None else app(self.gateway)
        super().__init__(client_app, nodes(len(answers)))
        as_they_answer = {index: name for index, (name, _, _) in enumerate(answers, 1)}
        self.registered = as_they_answer if registered is None else registered
        folder.write_text(NODES_FILE, json.dumps({str(node): name for node, name in self.registered.items()}))
        self.signals = _Looked(self)
        self.online, self.hangs, self.loses = online, hangs, loses
        self.asked: list[tuple[int, str, str]] = []
        self._mail: dict[int, dict[str, Message]] = {node: {} for node in nodes(len(answers))}
        self._held: dict[int, dict[str, Message]] = {node: {} for node in nodes(len(answers))}
        self._journal: dict[tuple[int, str], tuple[RecordDict, bytes]] = {}
        self._replies: dict[str, Message] = {}
        self._beats: dict[int, float] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are there."""
        return [node for node in super().get_node_ids() if self.online(node)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Puts messages where their nodes will find them."""
        identities = []
        for message in messages:
            metadata = message.metadata
            self.asked.append((metadata.dst_node_id, metadata.message_type, metadata.group_id))
            self._mail[metadata.dst_node_id][metadata.message_id] = message
            identities.append(metadata.message_id)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are whole."""
        return [self._replies.pop(identity) for identity in message_ids if identity in self._replies]

    def act(self, node: int) -> None:
        """The node's site does what there is to do."""
        if node not in self._mail or not self.online(node):
            return
        held = self._held[node]
        for identity, message in list(self._mail[node].items()):
            del self._mail[node][identity]
            self.gateway.note_handed_out(identity, node)
            if not self.loses(node, message):
                # Of two messages for one task the newer one is answered.
                held[task_of(message) or identity] = message
        for name, message in list(held.items()):
            if not self.hangs(node, message) and self.works(node, message):
                del held[name]
                self._reply(node, name, message)
        self.beat(node)

    def works(self, node: int, message: Message) -> bool:
        """Lets a site work on what it holds; whether it is done with it."""
        return True

    def step_of(self, node: int) -> tuple[int, int]:
        """How far a site is with the task that it holds: step and steps."""
        return 0, 0

    def beat(self, node: int) -> None:
        """The site says what it holds."""
        site = self.registered.get(node)
        if site is None or time.monotonic() - self._beats.get(node, -1) < BEAT_SECONDS:
            return
        self._beats[node] = time.monotonic()
        names = tuple(name for name, message in self._held[node].items() if is_task(message))
        step, steps = self.step_of(node) if names else (0, 0)
        self.gateway.note_heartbeat(site, Heartbeat(names, names[0] if names else "", step, steps))

    def _reply(self, node: int, name: str, message: Message) -> None:
        if (node, name) not in self._journal:
            try:
                reply = self._client_app(message, self._contexts[node])
            except MissingWeightsError:
                reply = Message(Error(ErrorCode.TASK_LOST, "MissingWeightsError"), reply_to=message)
            if reply.has_error() or not is_task(message):
                self._send(node, message, reply)
                return
            self._journal[node, name] = reply.content, self._update_of(node, reply.content)
        content, update = self._journal[node, name]
        if update:
            # As the courier does it, which asks first whether the gateway still has it.
            GatewayWeights(self.gateway, self.registered[node]).put([update])
        self._send(node, message, Message(content, reply_to=message))

    def _update_of(self, node: int, content: RecordDict) -> bytes:
        answer = unpack_answer(from_record(content))
        if not isinstance(answer, Result) or answer.update in (None, UNSENT):
            return b""
        return FileStore(self.gateway.updates(self.registered[node])).get(str(answer.update)).tobytes()

    def _send(self, node: int, message: Message, reply: Message) -> None:
        identity = message.metadata.message_id
        found = self.gateway.handed_out(identity)
        if found is not None and found.node == node:
            self._replies[identity] = reply
            self.gateway.note_reply(identity)


class _Looked(GatewaySignals):
    """The real signals; a site that is looked at does something first."""

    def __init__(self, network: FakeNetwork) -> None:
        super().__init__(network.gateway)
        self._network = network
        self._node_of: dict[str, int] = {}

    def has_reply(self, message: str) -> bool:
        for node in self._network.get_node_ids():
            self._network.act(node)
        return super().has_reply(message)

    def heartbeat(self, node: int) -> tuple[float, Heartbeat] | None:
        self._network.act(node)
        return super().heartbeat(node)


def is_task(message: Message) -> bool:
    return message.metadata.message_type in (MessageType.TRAIN, MessageType.EVALUATE)


def task_of(message: Message) -> str:
    """Name of the task in a message; empty for a hello."""
    question = unpack_question(from_record(message.content))
    return question.name if isinstance(question, Task) else ""
