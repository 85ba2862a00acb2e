"""Removes parts of messages that nobody will ask for any more from SuperLink's store.

Flower forgets a message whose time has run out, and with it what was answered; the parts of the answer stay until the
run ends. A site that begins an answer and never ends it could fill the server's disk in that way. Written for exactly
one version of Flower (``common.flower``).
"""

from __future__ import annotations

from collections.abc import Collection

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.date import now
from flwr.supercore.state.schema.corestate_models import ObjectPushSession, ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.objectstore_models import StoredObject
from sqlalchemy import exists, or_, select


def remove_leftovers(state: SqlLinkState, in_use: Collection[str]) -> None:
    """Removes every message's parts of which there is neither the message nor an upload that still goes on.

    Args:
        state: of SuperLink.
        in_use: messages that were handed out, with which Flower forgets them, and are being fetched.
    """
    with state.session() as session:
        root = ObjectPushSessionRoot.root_object_id
        ended = (
            select(ObjectPushSession.session_id)
            .where(ObjectPushSession.expires_at <= now())
            .where(
                ~exists().where(
                    ObjectPushSessionRoot.session_id == ObjectPushSession.session_id,
                    or_(
                        root.in_(in_use),
                        exists().where(MessageIns.message_id == root),
                        exists().where(MessageRes.message_id == root),
                    ),
                )
            )
        )
        for upload in list(session.scalars(ended)):
            state._cleanup_push_session(upload, cleanup_messages=True)
        forgotten = select(StoredObject.object_id).where(
            StoredObject.ref_count == 0,
            StoredObject.object_id.not_in(in_use),
            ~exists().where(MessageIns.message_id == StoredObject.object_id),
            ~exists().where(MessageRes.message_id == StoredObject.object_id),
            ~exists().where(root == StoredObject.object_id),
        )
        for message in list(session.scalars(forgotten)):
            state.object_store.delete(str(message))
