"""A site's question for a message, answered by SuperLink when there is one (``common.held_question``).

Whether there is one is looked up for all sites at once, past Flower's layers. Written for exactly one version of Flower
(``common.flower``).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supercore.utils import uint64_to_int64
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from starlette.requests import Request
from starlette.types import ASGIApp

from common.held_question import SHORTEST_PAUSE_SECONDS, HeldQuestion

PULL_MESSAGES = "/v1/fleet/pull-messages"
# As Flower chooses what it hands out.
_WAITING = "SELECT DISTINCT dst_node_id FROM message_ins WHERE delivered_at = '' AND created_at + ttl > ?"


class MessageWait(HeldQuestion):
    """ASGI middleware around SuperLink's application.

    Args:
        app: SuperLink's.
        database: file of its state.
    """

    def __init__(self, app: ASGIApp, database: str) -> None:
        super().__init__(app, PULL_MESSAGES, self._look_for)
        self._database = Path(database).absolute().as_uri()
        self._connection: sqlite3.Connection | None = None
        self._nodes: set[int] | None = None
        self._looked = float("-inf")

    def _look_for(self, request: Request, body: bytes) -> Callable[[], bool]:
        del request
        try:
            node = uint64_to_int64(PullMessagesRequest.FromString(body).node.node_id)
        except DecodeError:
            return lambda: True  # others say what is wrong with it
        return lambda: self._is_message_there(node)

    def _is_message_there(self, node: int) -> bool:
        if time.monotonic() - self._looked >= SHORTEST_PAUSE_SECONDS / 2:
            self._nodes, self._looked = self._waited_for(), time.monotonic()
        return self._nodes is None or node in self._nodes

    def _waited_for(self) -> set[int] | None:
        """Nodes to which there are messages that were not handed out; None if that cannot be told now."""
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(f"{self._database}?mode=ro", timeout=0, uri=True)
            return {node for (node,) in self._connection.execute(_WAITING, (time.time(),))}
        except sqlite3.Error:
            return None
