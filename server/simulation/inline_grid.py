"""An in-process Flower Grid that runs sites one after another.

ServerApp and ClientApp are the same as in a networked federation. The ClientApp processes a message only when its reply
is pulled, so only one reply is in memory at a time. Messages are processed in the order in which they were pushed:
the same seed gives the same result.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping

from flwr.app import Context, Message, Metadata, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from server.flower import SUPERLINK_NODE_ID, Run

TTL_SECONDS = 7 * 24 * 3600.0


class InlineGrid(Grid):
    """Runs ``client_app`` for each node in turn, in the calling thread.

    Parameters
    ----------
    client_app
        The app of all nodes.
    nodes
        Flower's node configuration by node id.
    """

    def __init__(self, client_app: ClientApp, nodes: Mapping[int, UserConfig]) -> None:
        run_id = secrets.randbits(62)
        self._run = Run.create_empty(run_id)
        self._client_app = client_app
        self._contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config=config,
                state=RecordDict(),
                run_config={},
            )
            for node, config in nodes.items()
        }
        self._queue: dict[str, Message] = {}

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replace the run."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message through Flower's older interface."""
        return self.message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def message(
        self,
        content: RecordDict,
        dst_node_id: int,
        message_type: str,
        *,
        ttl: float | None = None,
        group_id: str | None = None,
    ) -> Message:
        """Create a message of this grid's run; Flower's constructor works only in processes that Flower has started."""
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id=secrets.token_hex(32),
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id or "",
            created_at=time.time(),
            ttl=ttl or TTL_SECONDS,
            message_type=message_type,
        )
        made: Message = Message(metadata=metadata, content=content)  # type: ignore[call-overload]  # -- not in its hints
        return made

    def get_node_ids(self) -> Iterable[int]:
        """Return all node ids in ascending order."""
        return sorted(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages without running them."""
        accepted = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                raise ValueError(f"there is no node {message.metadata.dst_node_id}")
            self._queue[message.metadata.message_id] = message
            accepted.append(message.metadata.message_id)
        return accepted

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the oldest queued message among ``message_ids`` and return its reply, or nothing if none is queued."""
        wanted = set(message_ids)
        message_id = next((queued for queued in self._queue if queued in wanted), None)
        if message_id is None:
            return []
        message = self._queue.pop(message_id)
        return [self._client_app(message, self._contexts[message.metadata.dst_node_id])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return all replies. ``timeout`` is ignored, because no site can be late."""
        del timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies
