"""What keeps a site's SuperNode at its task when the line to the server breaks.

Flower's SuperNode repeats what failed, with two gaps that a hospital's firewall finds. It takes a connection that was
cut during TLS for a wrong certificate, and ends. And a piece of a reply whose confirmation was lost is refused when it
comes again, for the server has it; SuperNode then gives up the whole reply, and the server waits for the rest in vain.
Here only a certificate that is not accepted ends the attempts, and what was refused is settled by announcing the reply
again: the server then says which pieces it lacks, and these alone are sent. Written for exactly one version of Flower
(``common.flower``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.retry import RetryInvoker

log = logging.getLogger("fedvox.supernode")

Send = Callable[[Message, ObjectTree, float], tuple[set[str], str]]
PushObject = Callable[[int, str, str, bytes], None]
MOST_ANNOUNCEMENTS = 5
CERTIFICATE_REFUSED = "certificate"


def patient(make_invoker: Callable[[], RetryInvoker]) -> Callable[[], RetryInvoker]:
    """A replacement for ``make_simple_http_retry_invoker`` in ``flwr.supernode.fleet_http_connection``."""

    def make() -> RetryInvoker:
        invoker = make_invoker()
        gives_up = invoker.should_giveup

        def should_give_up(error: Exception) -> bool:
            if isinstance(error, httpx.TransportError) and CERTIFICATE_REFUSED not in str(error).lower():
                return False
            return gives_up is not None and gives_up(error)

        invoker.should_giveup = should_give_up
        return invoker

    return make


class Upload:
    """One reply on its way to the server.

    Args:
        message, tree: what was announced.
        wanted, session: the server's answer.
        store: has the pieces.
        send: announces a reply.
        push_object: sends a piece.
    """

    def __init__(
        self,
        message: Message,
        tree: ObjectTree,
        wanted: set[str],
        store: ObjectStore,
        send: Send,
        push_object: PushObject,
    ) -> None:
        self._message = message
        self._tree = tree
        self._waiting = set(wanted)
        self._refused: ObjectPushError | None = None
        self._store = store
        self._send = send
        self._push_object = push_object
        self._lock = threading.Lock()

    def push(self, run_id: int, session: str, identity: str, content: bytes) -> None:
        """Sends one piece; the call that comes to its end last settles what was refused.

        Raises:
            ObjectPushError: the server refuses pieces that it says it lacks.
        """
        refused: ObjectPushError | None = None
        try:
            self._push_object(run_id, session, identity, content)
        except ObjectPushError as error:
            refused = error
        with self._lock:
            self._refused = self._refused or refused
            self._waiting.discard(identity)
            is_last = not self._waiting
        if is_last and self._refused is not None:
            self._settle(run_id, self._refused)

    def _settle(self, run_id: int, refused: ObjectPushError) -> None:
        for _ in range(MOST_ANNOUNCEMENTS):
            missing, session = self._send(self._message, self._tree, 0.0)
            log.warning("pieces of a reply were refused; the server lacks %d of them", len(missing))
            try:
                for identity in sorted(missing):
                    self._push_object(run_id, session, identity, self._store.get(identity) or b"")
                return
            except ObjectPushError as error:
                refused = error
        raise refused
