"""A Flower Grid whose nodes work in Ray actors, several at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from flwr.app import Error, Message

from common.protocol.messages import ErrorCode
from server.simulation.virtual_grid import VirtualGrid

log = logging.getLogger("fedvox.server")


class RayGrid(VirtualGrid):
    """Sends each message to the worker of its node; the same node always has the same worker.

    Flower's own engine makes the app anew for every message, so the site would read its scans and compile its network
    again; and a worker that died would fail all the messages it is given from then on.

    Parameters
    ----------
    nodes
        The ids of all nodes.
    """

    def __init__(self, nodes: Iterable[int]) -> None:
        super().__init__(nodes)
        self._workers: Mapping[int, Any] = {}
        self._sent: dict[str, tuple[Message, Any]] = {}

    def use(self, workers: Mapping[int, Any]) -> None:
        """Let these workers (``server.simulation.ray_workers.Worker``, by node) answer."""
        self._workers = workers

    def _accept(self, message: Message) -> None:
        worker = self._workers[message.metadata.dst_node_id]
        self._sent[message.metadata.message_id] = message, worker.answer.remote(message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies among ``message_ids`` that are there; a site whose worker died for good sends an error."""
        wanted = [name for name in message_ids if name in self._sent]
        if not wanted:
            return []
        answers = [self._sent[name][1] for name in wanted]
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=0)
        return [self._reply(name) for name, answer in zip(wanted, answers, strict=True) if answer in ready]

    def _reply(self, name: str) -> Message:
        message, answer = self._sent.pop(name)
        try:
            reply: Message = ray.get(answer)
        except ray.exceptions.RayError as error:
            log.error("a Ray worker failed", exc_info=error)
            return Message(Error(code=ErrorCode.INTERNAL, reason=type(error).__name__), reply_to=message)
        return reply
