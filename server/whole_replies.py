"""What keeps a reply that is still on its way from being lost: a change to Flower's SuperLink.

SuperLink hands out a reply as soon as it is announced, and forgets at that moment which message it answers. Whoever
then has to announce it again, because the line broke or a process died, is turned away: the rest of the reply never
comes, and the server app learns it three minutes later. Here a reply is handed out when all of it is there. Until then
its site may announce it again, and is told which pieces are missing, or give another answer in its place. A reply of
which nothing has come for Flower's three minutes is handed out as it is, and fails. Written for exactly one version of
Flower (``common.flower``).
"""

from __future__ import annotations

from typing import Any

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.date import now
from flwr.supercore.state.schema.corestate_models import ObjectPushSession, ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageRes
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import Select, false, select, update


def hand_out_whole_replies(state: type[SqlLinkState]) -> None:
    """Changes a class of Flower's as described above."""
    get_message_res = state.get_message_res
    store_message_and_object_tree = state.store_message_and_object_tree

    def get_whole(self: SqlLinkState, message_ids: set[str], run_id: int) -> list[Message]:
        with self.session() as session:
            # Takes the lock for writing: a reply announced after the look would be handed out without its parts.
            session.execute(update(MessageRes).where(false()).values(delivered_at=""))
            coming = set(session.scalars(_coming(MessageRes.reply_to_message_id, message_ids)))
            return get_message_res(self, set(message_ids) - coming, run_id)

    def store_in_place(
        self: SqlLinkState, message: Message, object_tree: ObjectTree, session_id: str
    ) -> tuple[bool, list[str]]:
        metadata = message.metadata
        with self.session() as session:
            if metadata.reply_to_message_id:
                earlier = _coming(ObjectPushSession.session_id, {metadata.reply_to_message_id}).where(
                    MessageRes.message_id != metadata.message_id,
                    # A site may replace its own reply, and nobody else's.
                    MessageRes.src_node_id == uint64_to_int64(metadata.src_node_id),
                )
                for given_up in list(session.scalars(earlier)):
                    self._cleanup_push_session(given_up, cleanup_messages=True)
            return store_message_and_object_tree(self, message, object_tree, session_id)

    state.get_message_res = get_whole  # type: ignore[method-assign]
    state.store_message_and_object_tree = store_in_place  # type: ignore[method-assign]


def _coming(column: Any, message_ids: set[str]) -> Select[tuple[Any]]:
    """A column for the replies to messages of which pieces are missing and still expected."""
    return (
        select(column)
        .select_from(MessageRes)
        .join(ObjectPushSessionRoot, ObjectPushSessionRoot.root_object_id == MessageRes.message_id)
        .join(ObjectPushSession, ObjectPushSession.session_id == ObjectPushSessionRoot.session_id)
        .where(
            MessageRes.reply_to_message_id.in_(message_ids),
            ObjectPushSession.pending_count > 0,
            ObjectPushSession.expires_at > now(),
        )
    )
