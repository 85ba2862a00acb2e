"""A Flower Grid that lives in this process: sites answer one after another.

The ServerApp and ClientApp that run over it are the very ones that run over a network. A message is handed to the
ClientApp only when its reply is asked for, so that one reply at a time is in memory, and the order is that of the
sites: the same seed gives the same result.
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
    """Runs ``client_app`` for every node, in turn, in the calling thread.

    Parameters
    ----------
    client_app
        answers for all nodes.
    nodes
        node id -> Flower's node configuration of it.
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
        self._waiting: dict[str, Message] = {}

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replaces the run."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's older way to make a message."""
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
        """A message of this grid's run; Flower's own constructor works only in a process that Flower has started."""
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
        # Flower's own constructor by metadata, which it leaves out of its type hints.
        return Message(metadata=metadata, content=content)  # type: ignore[call-overload,no-any-return]

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in a fixed order."""
        return sorted(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Takes messages in; nothing runs yet."""
        identities = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                raise ValueError(f"there is no node {message.metadata.dst_node_id}")
            self._waiting[message.metadata.message_id] = message
            identities.append(message.metadata.message_id)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The reply to the message that has waited longest among ``message_ids``, or nothing."""
        wanted = set(message_ids)
        identity = next((waiting for waiting in self._waiting if waiting in wanted), None)
        if identity is None:
            return []
        message = self._waiting.pop(identity)
        return [self._client_app(message, self._contexts[message.metadata.dst_node_id])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All replies; ``timeout`` has no meaning here, for no site can be late."""
        del timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies
