"""Sites written from scratch over Flower's real apps, honest and otherwise, and a grid on which nodes come and go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from common.config import FederationConfig
from common.protocol import Result, SiteInfo, Task, Vector, WeightLayout, pack_info, pack_result, unpack_task
from server.app import Patience, RoundLoop, make_server_app
from server.inline_grid import InlineGrid
from server.state import RunFolder, RunState, now

LAYOUT = WeightLayout({"w": (4,)})
Answer = Callable[[Task, Vector], tuple[Result, Vector | None]]
Sites = list[tuple[str, int, Answer]]


class Silent:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self.lines: list[Mapping[str, Any]] = []

    def round_started(self, round: int, phase: str) -> None: ...
    def site_done(self, round: int, site: str, line: Mapping[str, Any]) -> None: ...
    def round_done(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        self.steps.append((site, step))

    def message(self, text: str) -> None:
        self.messages.append(text)


def begin(config: FederationConfig, layout: WeightLayout, folder: RunFolder, start: float = 0.0) -> None:
    """Makes the state and the first checkpoint of a run that has none."""
    if folder.load_state() is None:
        folder.save_checkpoint(0, np.full(layout.size, start, np.float32), layout)
        folder.commit(RunState(run="r1", digest=config.digest(), started=now()))


def run(
    config: FederationConfig,
    app: ClientApp,
    layout: WeightLayout,
    sites: int,
    folder: RunFolder,
    grid: InlineGrid | None = None,
    patience: Patience | None = None,
    observer: Silent | None = None,
    names: Callable[[int], str | None] | None = None,
) -> None:
    """Runs a federation over the app, from the beginning or from where the folder is."""
    begin(config, layout, folder)
    grid = grid or InlineGrid(app, nodes(sites))
    observer = observer or Silent()
    server_app = make_server_app(
        lambda: RoundLoop(config, layout, {1}, sites, folder, observer, names=names, patience=patience)
    )
    server_app(grid, Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}))


def nodes(count: int) -> dict[int, Any]:
    return {index + 1: {"partition-id": index} for index in range(count)}


def honest(name: str, examples: int, step: float, dice: Callable[[Vector], float] = lambda weights: 0.5) -> Answer:
    """A site whose training adds ``step`` to every weight, and whose Dice is a function of the weights."""

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
        return result, np.full(4, step, np.float32) if task.train else None

    return answer


def site(name: str, examples: int, step: float) -> tuple[str, int, Answer]:
    return name, examples, honest(name, examples, step)


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
        return replace(result, **changes[kind]), update

    return answer


def app_of(answers: Sites, tasks: list[tuple[str, Task]] | None = None) -> ClientApp:
    """A ClientApp of sites that answer as they please; ``tasks`` gets what each of them was asked."""
    app = ClientApp()

    def mine(context: Context) -> tuple[str, int, Answer]:
        return answers[int(context.node_config["partition-id"])]

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        name, examples, _ = mine(context)
        info = SiteInfo(name, examples, 2, "0", "0", "0", "0", "cpu", "float32")
        return Message(pack_info(info), reply_to=message)

    def work(message: Message, context: Context) -> Message:
        task, weights = unpack_task(message.content, 4)
        name, _, answer = mine(context)
        if tasks is not None:
            tasks.append((name, task))
        try:
            return Message(pack_result(*answer(task, weights), encoding=task.upload), reply_to=message)
        except ArithmeticError:
            return Message(Error(code=1000, reason="patient Jane Doe, bed 7"), reply_to=message)

    app.train()(work)
    app.evaluate()(work)
    return app


class ShakyGrid(InlineGrid):
    """Nodes hang, go offline and come as the test says; offline ones get Flower's error 5.

    Args:
        hangs: whether the reply to a message never comes.
        online: whether a node is there; asked at every look.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Mapping[int, Any],
        hangs: Callable[[int, Message], bool] = lambda node, message: False,
        online: Callable[[int], bool] = lambda node: True,
    ) -> None:
        super().__init__(client_app, nodes)
        self._hangs = hangs
        self._is_online = online
        self.asked: list[tuple[int, str, str]] = []

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if self._is_online(node)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        metadata = [message.metadata for message in messages]
        self.asked += [(item.dst_node_id, item.message_type, item.group_id) for item in metadata]
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        [identity] = message_ids
        message = self._waiting.get(identity)
        if message is None:
            return []
        node = message.metadata.dst_node_id
        if not self._is_online(node):
            del self._waiting[identity]
            return [Message(Error(code=5, reason="Node Unavailable"), reply_to=message)]
        return [] if self._hangs(node, message) else super().pull_messages([identity])


def is_task(message: Message) -> bool:
    return message.metadata.message_type in (MessageType.TRAIN, MessageType.EVALUATE)
