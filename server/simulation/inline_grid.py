"""An in-process Flower Grid that runs sites one after another.

ServerApp and ClientApp are the same as in a networked federation. The ClientApp processes a message only when its reply
is pulled, so only one reply is in memory at a time. Messages are processed in the order in which they were pushed:
the same seed gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import Message, UserConfig
from flwr.clientapp import ClientApp

from server.simulation.virtual_grid import VirtualGrid, node_contexts


class InlineGrid(VirtualGrid):
    """Runs ``client_app`` for each node in turn, in the calling thread.

    Parameters
    ----------
    client_app
        The app of all nodes.
    nodes
        Flower's node configuration by node id.
    """

    def __init__(self, client_app: ClientApp, nodes: Mapping[int, UserConfig]) -> None:
        super().__init__(nodes)
        self._client_app = client_app
        self._contexts = node_contexts(self.run.run_id, nodes)
        self._queue: dict[str, Message] = {}

    def _accept(self, message: Message) -> None:
        self._queue[message.metadata.message_id] = message

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the oldest queued message among ``message_ids`` and return its reply, or nothing if none is queued."""
        wanted = set(message_ids)
        message_id = next((queued for queued in self._queue if queued in wanted), None)
        if message_id is None:
            return []
        message = self._queue.pop(message_id)
        return [self._client_app(message, self._contexts[message.metadata.dst_node_id])]
