"""What brings a message to its node that was lost on the way: a change to Flower's SuperLink.

SuperLink notes that a message was handed out before the answer leaves. Killed in between, or with the line broken, it
never hands it out again, and a site that asks and asks gets nothing until the server app gives it up, minutes later. A
SuperNode asks for a message only when it has none left to do, and confirms each that it has received. So whoever asks
while a message to him is handed out, not confirmed and not answered, has never got it, and gets it now. Written for
exactly one version of Flower (``common.flower``).
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.date import now
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import exists, select, update

UNDERWAY = timedelta(seconds=1)
"""So long an answer may take to arrive before it counts as lost."""
LOOK_SECONDS = 1.0


def hand_out_again(state: type[SqlLinkState]) -> None:
    """Changes a class of Flower's as described above."""
    get_message_ins = state.get_message_ins

    def get_also_lost(self: SqlLinkState, node_id: int, limit: int | None, **options: Any) -> list[Message]:
        found = get_message_ins(self, node_id, limit, **options)
        if found or node_id == SUPERLINK_NODE_ID or not _is_time(self, node_id) or not _put_back(self, node_id):
            return found
        return get_message_ins(self, node_id, limit, **options)

    state.get_message_ins = get_also_lost  # type: ignore[method-assign]


def _is_time(state: SqlLinkState, node: int) -> bool:
    """Whether to look for this node; it asks twenty times a second at first."""
    looks: dict[int, float] = state.__dict__.setdefault("_looks_for_lost_tasks", {})
    if time.monotonic() - looks.get(node, -LOOK_SECONDS) < LOOK_SECONDS:
        return False
    looks[node] = time.monotonic()
    return True


def _put_back(state: SqlLinkState, node: int) -> bool:
    """Lets what is lost be handed out as if it never had been; whether there was anything."""
    unanswered = select(MessageIns.message_id, MessageIns.delivered_at).where(
        MessageIns.dst_node_id == uint64_to_int64(node),
        MessageIns.delivered_at != "",
        ~exists().where(MessageRes.reply_to_message_id == MessageIns.message_id),
    )
    with state.session() as session:
        rows = session.execute(unanswered).all()
    lost = [
        name
        for name, handed_out in rows
        # What was confirmed is not there any more.
        if name and handed_out and now() - datetime.fromisoformat(handed_out) > UNDERWAY and name in state.object_store
    ]
    if lost:
        with state.session() as session:
            session.execute(update(MessageIns).where(MessageIns.message_id.in_(lost)).values(delivered_at=""))
    return bool(lost)
