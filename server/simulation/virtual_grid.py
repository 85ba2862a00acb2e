"""What the Flower Grids of a simulation have in common: nodes without a network, and messages between them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping

from flwr.app import Context, Message, Metadata, RecordDict, UserConfig
from flwr.serverapp import Grid

from server.flower import SUPERLINK_NODE_ID, Run

TTL_SECONDS = 7 * 24 * 3600.0
_PAUSE_SECONDS = 0.05


def node_contexts(run_id: int, nodes: Mapping[int, UserConfig]) -> dict[int, Context]:
    """Return Flower's context for every node."""
    return {
        node: Context(run_id=run_id, node_id=node, node_config=config, state=RecordDict(), run_config={})
        for node, config in nodes.items()
    }


class VirtualGrid(Grid):
    """A Grid to nodes that are not processes of their own; subclasses say how they work.

    Parameters
    ----------
    nodes
        Their ids.
    """

    def __init__(self, nodes: Iterable[int]) -> None:
        self._run = Run.create_empty(secrets.randbits(62))
        self._nodes = frozenset(nodes)

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
        return sorted(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand every message to its node."""
        accepted = []
        for message in messages:
            if message.metadata.dst_node_id not in self._nodes:
                raise ValueError(f"there is no node {message.metadata.dst_node_id}")
            self._accept(message)
            accepted.append(message.metadata.message_id)
        return accepted

    def _accept(self, message: Message) -> None:
        """Keep a message for its node, or send it there."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return all replies. ``timeout`` is ignored, because no site can be late."""
        del timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            found = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
            if not found:
                time.sleep(_PAUSE_SECONDS)
        return replies
